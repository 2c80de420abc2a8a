"""Samples one token per row of logits. Rows may differ in every parameter; each is computed independently.

Random draws use the inverse CDF: one uniform number per row, from `(seed, output position)`, picks the token
at which the cumulative distribution passes it. Filters run in vLLM's order: constraint, logits processors,
temperature, min_p, top_k, top_p, each on what the previous one left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from engine.core.logits_processors import LogitsProcessors
from engine.core.types import SamplingParams
from engine.errors import EngineError, GenerationFailed, InvalidRequest
from engine.execution.sampling.logits_processing import apply_logits_processors, forbid
from engine.execution.sampling.masks import Masks
from engine.execution.sampling.uniform import uniform
from engine.models.native.kernels import find_kernels

_NUM_CANDIDATES = 1024  # sorted first; a row whose top_p needs more sorts its whole vocabulary
_BLOCK = 512  # tokens whose weights are summed together
_GREEDY_BELOW = 1e-5  # a temperature, as in vLLM: dividing by less overflows


@dataclass(frozen=True, slots=True)
class SampledRow:
    """How to sample one row of logits."""

    params: SamplingParams
    output_position: int
    logits_processors: LogitsProcessors | None = None

    @property
    def is_random(self) -> bool:
        return self.params.temperature >= _GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class SamplerOutput:
    """A token per row, None where none can be sampled; `failures` has the reason, by row."""

    tokens: list[int | None]
    failures: dict[int, EngineError]


class Sampler:
    """Stateless except for the model's end-of-sequence tokens, which `min_tokens` forbids at first."""

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)

    def sample(
        self, logits: torch.Tensor, rows: Sequence[SampledRow], masks: Masks | None = None
    ) -> SamplerOutput:
        """One token per row of `logits` [S, vocab_size], which may be modified."""
        scores = self._process_logits(logits, rows, masks)
        random = [index for index, row in enumerate(rows) if row.is_random]
        if len(random) < len(rows):
            best = scores.argmax(dim=-1, keepdim=True)  # the first of equals, or of NaNs
            peaks, tokens = scores.gather(-1, best), best[:, 0].tolist()
        else:
            peaks, tokens = scores.amax(dim=-1), [0] * len(rows)
        failures = _failures(peaks.flatten().tolist())
        random = [index for index in random if index not in failures]
        unfiltered = [i for i in random if not _needs_order(rows[i].params, scores.shape[-1])]
        ordered = [i for i in random if _needs_order(rows[i].params, scores.shape[-1])]
        for indices, draw in ((unfiltered, _draw_in_token_order), (ordered, _draw_in_rank_order)):
            if indices:
                drawn = draw(scores, _Draws.of(rows, indices, scores))
                for index, token in zip(indices, drawn, strict=True):
                    tokens[index] = token
        for index in failures:
            tokens[index] = None
        return SamplerOutput(tokens, failures)

    def _process_logits(
        self, logits: torch.Tensor, rows: Sequence[SampledRow], masks: Masks | None
    ) -> torch.Tensor:
        """The scores to sample from, float32: `logits` itself if it has that type.

        On a CPU, PyTorch's argmax over half types takes five times as long as converting first.
        """
        scores = logits.float()
        if masks is not None:
            masks.apply(scores)
        if processors := {
            index: row.logits_processors
            for index, row in enumerate(rows)
            if row.logits_processors is not None
        }:
            apply_logits_processors(scores, processors)
        early = [i for i, row in enumerate(rows) if row.output_position < row.params.min_tokens]
        if early:
            stops = {i: self._stop_token_ids(rows[i].params, scores.shape[-1]) for i in early}
            constrained = [] if masks is None else [i for i in early if i in masks.rows and stops[i]]
            before = {i: scores[i, stops[i]] for i in constrained}
            forbid(scores, stops)
            for i in constrained:  # a complete output can only end: this overrides min_tokens
                if scores[i].max() == -math.inf:
                    scores[i, stops[i]] = before[i]
        return scores

    def _stop_token_ids(self, params: SamplingParams, vocab_size: int) -> list[int]:
        eos = frozenset[int]() if params.ignore_eos else self._eos_token_ids
        return _below(vocab_size, params.stop_token_ids, eos)


@lru_cache(maxsize=256)
def _below(vocab_size: int, stop_token_ids: frozenset[int], eos_token_ids: frozenset[int]) -> list[int]:
    """Cached: a request may have thousands, the same in every step. Don't modify the list."""
    return [token for token in stop_token_ids | eos_token_ids if token < vocab_size]


_NOTHING_LEFT = "No token is left to choose from: this request's parameters forbid all of them."


def _failures(peaks: Sequence[float]) -> dict[int, EngineError]:
    """Which rows can't be sampled, by the highest logit of each, which is NaN if one of them is."""
    return {
        index: InvalidRequest(_NOTHING_LEFT)
        if peak == -math.inf
        else GenerationFailed("The model's output for this request is not a number.")
        for index, peak in enumerate(peaks)
        if not math.isfinite(peak)
    }


@dataclass(frozen=True, slots=True)
class _Draws:
    """The parameters of rows drawn together, as columns [R, 1]."""

    indices: torch.Tensor  # int64 [R], into the rows of the logits
    temperature: torch.Tensor
    min_p: torch.Tensor
    top_k: torch.Tensor  # int64; the vocabulary's size if unlimited
    top_p: torch.Tensor  # float64
    uniform: torch.Tensor  # float64

    @staticmethod
    def of(rows: Sequence[SampledRow], indices: Sequence[int], logits: torch.Tensor) -> _Draws:
        device, vocab_size = logits.device, logits.shape[-1]
        params = [rows[i].params for i in indices]
        floats = torch.tensor(
            [
                (p.temperature, p.min_p, p.top_p, uniform(p.seed, rows[i].output_position))
                for i, p in zip(indices, params, strict=True)
            ],
            dtype=torch.float64,
        ).to(device)
        top_k = torch.tensor([[min(p.top_k, vocab_size) or vocab_size] for p in params], device=device)
        temperature, min_p, top_p, draw = (column[:, None] for column in floats.T.contiguous())
        return _Draws(
            indices=torch.tensor(indices, device=device),
            temperature=temperature.float(),
            min_p=min_p.float(),
            top_k=top_k,
            top_p=top_p,
            uniform=draw,
        )

    def select(self, rows: torch.Tensor) -> _Draws:
        """The draws at these positions, int64 [N]."""
        return _Draws(
            self.indices[rows],
            self.temperature[rows],
            self.min_p[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.uniform[rows],
        )


def _needs_order(params: SamplingParams, vocab_size: int) -> bool:
    """Whether the tokens must be ranked; temperature and min_p alone don't need it."""
    return params.top_p < 1.0 or 0 < params.top_k < vocab_size


def _weights(logits: torch.Tensor, draws: _Draws) -> torch.Tensor:
    """Unnormalised probabilities, the largest 1; 0 below min_p. Float32 [R, vocab_size]."""
    scaled = logits[draws.indices]
    scaled -= scaled.amax(dim=-1, keepdim=True)
    weights = scaled.div_(draws.temperature).exp_()
    return torch.where(weights < draws.min_p, 0.0, weights)


def _draw_in_token_order(logits: torch.Tensor, draws: _Draws) -> list[int]:
    """In two steps, first a block of tokens and then one in it, because PyTorch's cumsum is slow."""
    if (kernels := find_kernels(logits.device.type, logits.dtype)) is not None and logits.is_contiguous():
        drawn = kernels.draw_tokens(
            logits,
            draws.indices,
            temperature=draws.temperature.contiguous(),
            min_p=draws.min_p.contiguous(),
            uniform=draws.uniform.contiguous(),
        )
        chosen: list[int] = drawn.tolist()
        return chosen
    weights = _weights(logits, draws)
    vocab_size = weights.shape[-1]
    before = _block_sums(weights).cumsum(dim=-1)
    total = before[:, -1:].contiguous()
    threshold = draws.uniform * total
    block = _pick(before, total, threshold)[:, None]
    places = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(-1, places.clamp(max=vocab_size - 1)).masked_fill_(places >= vocab_size, 0.0)
    cumulative = inside.cumsum(dim=-1, dtype=torch.float64)
    threshold = threshold - torch.where(block > 0, before.gather(-1, (block - 1).clamp(min=0)), 0.0)
    picked = _pick(cumulative, cumulative[:, -1:].contiguous(), threshold)[:, None]
    tokens: list[int] = places.gather(-1, picked)[:, 0].tolist()
    return tokens


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """The sum of the weights of each _BLOCK tokens: float64 [R, ceil(vocab_size / _BLOCK)]."""
    whole = weights.shape[-1] // _BLOCK * _BLOCK
    sums = weights[:, :whole].view(len(weights), whole // _BLOCK, _BLOCK).sum(dim=-1)
    rest = weights[:, whole:].sum(dim=-1, keepdim=True)
    return torch.cat((sums, rest), dim=-1).double()


def _draw_in_rank_order(logits: torch.Tensor, draws: _Draws) -> list[int]:
    weights = _weights(logits, draws)
    tokens, decided = _draw_ranked(weights, draws, min(_NUM_CANDIDATES, weights.shape[-1]))
    if not bool(decided.all()):
        rest = (~decided).nonzero().flatten()
        tokens[rest], _ = _draw_ranked(weights[rest], draws.select(rest), weights.shape[-1])
    result: list[int] = tokens.tolist()
    return result


def _draw_ranked(
    weights: torch.Tensor, draws: _Draws, num_candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw among the `num_candidates` most likely tokens.

    Returns the tokens [R], and for each row whether it is decided: False if the filters keep more tokens than
    were looked at; the row's token is then meaningless.
    """
    vocab_size = weights.shape[-1]
    ranked, token_ids = weights.topk(num_candidates, dim=-1)
    ranks = torch.arange(num_candidates, device=weights.device)
    cumulative = torch.where(ranks < draws.top_k, ranked, 0.0).cumsum(dim=-1, dtype=torch.float64)
    knows_total = draws.top_k <= num_candidates
    total = torch.where(knows_total, cumulative[:, -1:], _block_sums(weights).sum(dim=-1, keepdim=True))
    mass = draws.top_p * total
    decided = knows_total | ((draws.top_k >= vocab_size) & (cumulative[:, -1:] >= mass))
    # Keeps every token before which the mass isn't reached yet, and of equals at the end the first ones.
    last_kept = torch.searchsorted(cumulative, mass).clamp_(max=num_candidates - 1)
    least = ranked.gather(-1, last_kept)
    num_least = last_kept + 1 - (ranked > least).sum(dim=-1, keepdim=True)
    # Draws in the tokens' own order: in the order of ranks, a rounding that swaps two would change the draw.
    token_ids, order = token_ids.sort(dim=-1)
    ranked = ranked.gather(-1, order)
    is_least = ranked == least
    is_kept = (ranked > least) | (is_least & (is_least.cumsum(dim=-1) <= num_least))
    cumulative = torch.where(is_kept, ranked, 0.0).cumsum(dim=-1, dtype=torch.float64)
    kept = cumulative[:, -1:].contiguous()
    picked = _pick(cumulative, kept, draws.uniform * kept)[:, None]
    return token_ids.gather(-1, picked)[:, 0], decided[:, 0]


def _pick(cumulative: torch.Tensor, kept: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """The first index [R] at which the cumulative weights exceed a threshold below those kept."""
    # Rounding may raise the threshold to `kept`: then the last index that adds something is meant.
    last = torch.searchsorted(cumulative, kept)
    return torch.minimum(torch.searchsorted(cumulative, threshold, right=True), last)[:, 0]
