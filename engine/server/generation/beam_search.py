"""Beam search over one prompt, by vLLM's rules. Pure: logprobs in, beams out.

Each step considers the 2 x width most likely tokens after each beam. An end token completes its beam,
whatever its rank; of the other candidates, the best `width` continue. A score is the sum of logprobs divided
by length ** length_penalty, where the length counts prompt and output without an end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from engine.core.types import ALL_LOGPROBS, PositionLogprobs, TokenLogprob


@dataclass(frozen=True, slots=True)
class Beam:
    token_ids: tuple[int, ...] = ()  # of the output
    logprobs: tuple[PositionLogprobs, ...] = ()  # parallel to `token_ids`, if kept; `chosen` is the token
    total: float = 0.0
    end_token: int | None = None  # that completed the beam, whether or not it is in `token_ids`
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """The parameters shared by all searches of a request."""

    width: int
    length_penalty: float
    end_token_ids: frozenset[int]
    ignores_end_tokens: bool  # end tokens are treated like any other
    keeps_end_token: bool  # in `token_ids`
    num_logprobs: int | None = None  # kept per token; None = none, ALL_LOGPROBS = all that the engine returns

    @property
    def num_candidates(self) -> int:
        """Tokens considered after each beam."""
        return 2 * self.width


class BeamSearch:
    """`live` beams continue: `advance` takes the candidates for the next token of each."""

    def __init__(self, params: BeamSearchParams, prompt: Sequence[int], max_tokens: int) -> None:
        self._params = params
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._num_steps = 0
        self._completed: list[Beam] = []  # only the best `width`: the others cannot win any more
        self.live = [self._scored(Beam())]

    @property
    def is_done(self) -> bool:
        """Whether no further step could change the result."""
        return not self.live or self._num_steps >= self._max_tokens or self._is_decided()

    def advance(self, positions: Sequence[PositionLogprobs]) -> None:
        """Extend by one token. `positions`: the candidates for each live beam, most likely first."""
        candidates: list[Beam] = []
        for beam, position in zip(self.live, positions, strict=True):
            for token in position.top[: self._params.num_candidates]:
                kept_logprobs = self._kept_logprobs(token, position.top)
                total = beam.total + token.logprob
                if token.token_id in self._params.end_token_ids and not self._params.ignores_end_tokens:
                    self._add_completed(beam, token.token_id, kept_logprobs, total)
                else:
                    token_ids = (*beam.token_ids, token.token_id)
                    candidates.append(Beam(token_ids, (*beam.logprobs, *kept_logprobs), total))
        candidates.sort(key=attrgetter("total"), reverse=True)
        self.live = [self._scored(beam) for beam in candidates[: self._params.width]]
        self._num_steps += 1

    def best(self) -> list[Beam]:
        """The best beams first; at most `width`."""
        return self._best(self._completed + self.live)

    def _kept_logprobs(
        self, token: TokenLogprob, top: tuple[TokenLogprob, ...]
    ) -> tuple[PositionLogprobs, ...]:
        wanted = self._params.num_logprobs
        if wanted is None:
            return ()
        return (PositionLogprobs(token, top if wanted == ALL_LOGPROBS else top[:wanted]),)

    def _add_completed(
        self, beam: Beam, end: int, kept_logprobs: tuple[PositionLogprobs, ...], total: float
    ) -> None:
        kept = Beam(beam.token_ids, beam.logprobs, total, end)
        if self._params.keeps_end_token:
            kept = Beam((*beam.token_ids, end), (*beam.logprobs, *kept_logprobs), total, end)
        self._completed = self._best([*self._completed, self._scored(kept)])

    def _best(self, beams: list[Beam]) -> list[Beam]:
        return sorted(beams, key=attrgetter("score"), reverse=True)[: self._params.width]

    def _scored(self, beam: Beam) -> Beam:
        last = (beam.token_ids or self._prompt)[-1]
        length = len(self._prompt) + len(beam.token_ids) - (last in self._params.end_token_ids)
        score = beam.total / max(length, 1) ** self._params.length_penalty
        return Beam(beam.token_ids, beam.logprobs, beam.total, beam.end_token, score)

    def _is_decided(self) -> bool:
        """Whether even the best live beam cannot score higher than the completed ones.

        Its sum can only fall, and its final length lies between `shortest` and `longest`.
        """
        if len(self._completed) < self._params.width:
            return False
        shortest = max(len(self._prompt) + self._num_steps - 1, 1)
        longest = len(self._prompt) + self._max_tokens
        most = max(length**self._params.length_penalty for length in (shortest, longest))
        return bool(self.live[0].total / most <= self._completed[-1].score)
