"""Samples one token per row of logits. Rows may differ in every parameter; each is computed for itself.

The random part is inverse-CDF: one uniform number per row, from `(seed, output position)`, picks the token
at which the cumulative distribution passes it. Order of the filters, as vLLM has it: temperature, min_p,
top_k, top_p, each on what the one before left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.sampling.uniform import uniform
from engine.types import SamplingParams

_NUM_CANDIDATES = 1024  # sorted at first; a row whose top_p needs more sorts its whole vocabulary


@dataclass(frozen=True, slots=True)
class SampledRow:
    """How one row of logits is to be sampled."""

    params: SamplingParams
    output_position: int


class Sampler:
    """Stateless but for the model's own stop tokens, which `min_tokens` forbids for a while."""

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)

    def sample(self, logits: torch.Tensor, rows: Sequence[SampledRow]) -> list[int]:
        """One token id per row of `logits` [S, vocab_size], changed where tokens are forbidden."""
        self._forbid_early_stops(logits, rows)
        random = [index for index, row in enumerate(rows) if row.params.temperature > 0]
        if not random:
            return argmax(logits)
        tokens = argmax(logits) if len(random) < len(rows) else [0] * len(rows)
        unfiltered = [i for i in random if not _needs_order(rows[i].params, logits.shape[-1])]
        ordered = [i for i in random if _needs_order(rows[i].params, logits.shape[-1])]
        for indices, draw in ((unfiltered, _draw_in_token_order), (ordered, _draw_in_rank_order)):
            if indices:
                drawn = draw(logits, _Draws.of(rows, indices, logits))
                for index, token in zip(indices, drawn, strict=True):
                    tokens[index] = token
        return tokens

    def _forbid_early_stops(self, logits: torch.Tensor, rows: Sequence[SampledRow]) -> None:
        for index, row in enumerate(rows):
            if row.output_position < row.params.min_tokens:
                forbidden = set(row.params.stop_token_ids)
                if not row.params.ignore_eos:
                    forbidden |= self._eos_token_ids
                logits[index, [token for token in forbidden if token < logits.shape[-1]]] = -torch.inf


def argmax(logits: torch.Tensor) -> list[int]:
    """The most likely token of each row; the first of equals.

    In float32: on a CPU, PyTorch's argmax over half types takes five times as long as the conversion and it.
    """
    tokens: list[int] = logits.float().argmax(dim=-1).tolist()
    return tokens


@dataclass(frozen=True, slots=True)
class _Draws:
    """The parameters of the rows that are drawn together, as columns [R, 1]."""

    indices: torch.Tensor  # int64 [R], into the rows of the logits
    temperature: torch.Tensor
    min_p: torch.Tensor
    top_k: torch.Tensor  # int64; the vocabulary's size where there is no limit
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
    """Whether the tokens have to be ranked; for temperature and min_p alone they haven't."""
    return params.top_p < 1.0 or 0 < params.top_k < vocab_size


def _weights(logits: torch.Tensor, draws: _Draws) -> torch.Tensor:
    """Probabilities but for a common factor, the largest 1; 0 below min_p. Float32 [R, vocab_size]."""
    scaled = logits[draws.indices].float()
    scaled -= scaled.amax(dim=-1, keepdim=True)
    weights = scaled.div_(draws.temperature).exp_()
    return torch.where(weights < draws.min_p, 0.0, weights)


def _draw_in_token_order(logits: torch.Tensor, draws: _Draws) -> list[int]:
    cumulative = _weights(logits, draws).cumsum(dim=-1, dtype=torch.float64)
    tokens: list[int] = _pick(cumulative, cumulative[:, -1:].contiguous(), draws).tolist()
    return tokens


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

    Returns the tokens [R], and for each row whether it is decided: False where the filters let more tokens
    pass than were looked at, and the token is worthless.
    """
    vocab_size = weights.shape[-1]
    ranked, token_ids = weights.topk(num_candidates, dim=-1)
    ranks = torch.arange(num_candidates, device=weights.device)
    cumulative = torch.where(ranks < draws.top_k, ranked, 0.0).cumsum(dim=-1, dtype=torch.float64)
    knows_total = draws.top_k <= num_candidates
    total = torch.where(
        knows_total, cumulative[:, -1:], weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
    )
    mass = draws.top_p * total
    decided = knows_total | ((draws.top_k >= vocab_size) & (cumulative[:, -1:] >= mass))
    # Kept is every token before which the mass isn't reached yet; `kept` is their weight together.
    last_kept = torch.searchsorted(cumulative, mass).clamp_(max=num_candidates - 1)
    kept = cumulative.gather(-1, last_kept)
    picked = _pick(cumulative, kept, draws)[:, None]
    return token_ids.gather(-1, picked)[:, 0], decided[:, 0]


def _pick(cumulative: torch.Tensor, kept: torch.Tensor, draws: _Draws) -> torch.Tensor:
    """The first index [R] at which the cumulative weights exceed the uniform part of those kept."""
    # u < 1, but u * kept may round up to kept: then the last index that adds something is meant.
    last = torch.searchsorted(cumulative, kept)
    return torch.minimum(torch.searchsorted(cumulative, draws.uniform * kept, right=True), last)[:, 0]
