"""Beam search over one prompt, by vLLM's rules. Pure: logprobs in, beams out.

Each step looks at the 2 x width most likely tokens after each beam. One that ends a sequence completes a
beam, whatever its place; of the others, the width best go on. Scores are sums of logprobs, divided by the
length (of prompt and output, without an end token) to the power of the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from engine.core.types import ALL_LOGPROBS, PositionLogprobs, TokenLogprob


@dataclass(frozen=True, slots=True)
class Beam:
    token_ids: tuple[int, ...] = ()  # of the output
    logprobs: tuple[PositionLogprobs, ...] = ()  # parallel, if they are kept; `chosen` is the beam's token
    total: float = 0.0
    end_token: int | None = None  # that completed it, part of `token_ids` or not
    score: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """What all searches of a request have in common."""

    width: int
    length_penalty: float
    end_token_ids: frozenset[int]
    ignores_end: bool  # an end token is a token like others
    keeps_end: bool  # in `token_ids`
    num_logprobs: int | None = None  # that are kept for each token; None = none, ALL_LOGPROBS = as they come

    @property
    def num_looked_at(self) -> int:
        """Tokens after each beam."""
        return 2 * self.width


class BeamSearch:
    """`live` beams go on: `advance` wants what may follow each of them."""

    def __init__(self, rule: BeamSearchParams, prompt: Sequence[int], max_tokens: int) -> None:
        self._rule = rule
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._num_steps = 0
        self._completed: list[Beam] = []  # the best `width` of them: no other can come back
        self.live = [self._scored(Beam())]

    @property
    def is_done(self) -> bool:
        """Whether nothing that could follow would change the answer."""
        return not self.live or self._num_steps >= self._max_tokens or self._is_decided()

    def advance(self, positions: Sequence[PositionLogprobs]) -> None:
        """One token more. `positions`: what may follow each live beam, the most likely first."""
        candidates: list[Beam] = []
        for beam, position in zip(self.live, positions, strict=True):
            for token in position.top[: self._rule.num_looked_at]:
                told = self._told(token, position.top)
                total = beam.total + token.logprob
                if token.token_id in self._rule.end_token_ids and not self._rule.ignores_end:
                    self._complete(beam, token.token_id, told, total)
                else:
                    token_ids = (*beam.token_ids, token.token_id)
                    candidates.append(Beam(token_ids, (*beam.logprobs, *told), total))
        candidates.sort(key=attrgetter("total"), reverse=True)
        self.live = [self._scored(beam) for beam in candidates[: self._rule.width]]
        self._num_steps += 1

    def best(self) -> list[Beam]:
        """The best first; no more than there are."""
        return self._best(self._completed + self.live)

    def _told(self, token: TokenLogprob, top: tuple[TokenLogprob, ...]) -> tuple[PositionLogprobs, ...]:
        wanted = self._rule.num_logprobs
        if wanted is None:
            return ()
        return (PositionLogprobs(token, top if wanted == ALL_LOGPROBS else top[:wanted]),)

    def _complete(self, beam: Beam, end: int, told: tuple[PositionLogprobs, ...], total: float) -> None:
        kept = Beam(beam.token_ids, beam.logprobs, total, end)
        if self._rule.keeps_end:
            kept = Beam((*beam.token_ids, end), (*beam.logprobs, *told), total, end)
        self._completed = self._best([*self._completed, self._scored(kept)])

    def _best(self, beams: list[Beam]) -> list[Beam]:
        return sorted(beams, key=attrgetter("score"), reverse=True)[: self._rule.width]

    def _scored(self, beam: Beam) -> Beam:
        last = (beam.token_ids or self._prompt)[-1]
        length = len(self._prompt) + len(beam.token_ids) - (last in self._rule.end_token_ids)
        score = beam.total / max(length, 1) ** self._rule.length_penalty
        return Beam(beam.token_ids, beam.logprobs, beam.total, beam.end_token, score)

    def _is_decided(self) -> bool:
        """Whether even the best live beam can't come to score more than the completed ones have.

        Its sum can only fall, and its length end between these two.
        """
        if len(self._completed) < self._rule.width:
            return False
        shortest = max(len(self._prompt) + self._num_steps - 1, 1)
        longest = len(self._prompt) + self._max_tokens
        most = max(length**self._rule.length_penalty for length in (shortest, longest))
        return bool(self.live[0].total / most <= self._completed[-1].score)
