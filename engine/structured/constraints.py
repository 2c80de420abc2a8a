"""One sequence's constraint: a grammar, possibly after reasoning, which may have a token budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.core.types import MAX_ROLLBACK, TokenConstraint
from engine.structured.matching import Follower
from engine.structured.spec import ReasoningDelimiters


class GrammarConstraint:
    """Allows what the grammar allows; once it is complete, only the end-of-sequence tokens.

    The next mask is computed as soon as a token is accepted, while the engine continues.
    """

    def __init__(self, follower: Follower, eos_token_ids: Sequence[int]) -> None:
        self._follower = follower
        self._eos_token_ids = tuple(eos_token_ids)
        self._has_ended = False
        self._num_followed = 0  # accepted tokens of the grammar's text
        self._num_beyond = 0  # accepted after them: an end token, and what ignore_eos adds

    def wait(self, timeout_s: float) -> bool:
        """Always False if the output is complete and there is no end token: see `is_finished`."""
        if not self._has_ended and not self._follower.wait(timeout_s):
            return False
        return bool(self._eos_token_ids) or not self.is_finished

    def fill_mask(self, mask: Any, row: int) -> bool:
        if self._is_complete():  # beyond the end only with ignore_eos
            only(mask, row, self._eos_token_ids)
        else:
            mask[row].numpy()[:] = self._follower.mask
        return True

    def accept(self, token_id: int) -> None:
        is_complete = self._is_complete()
        if self._has_ended or (is_complete and not self._eos_token_ids):
            self._num_beyond += 1
            return
        word, bit = divmod(token_id, 32)
        is_end = token_id in self._eos_token_ids
        if not (is_end if is_complete else self._follower.mask[word] >> bit & 1):
            raise ValueError(f"The grammar doesn't allow token {token_id}.")
        self._has_ended = is_end
        if is_end:
            self._num_beyond += 1
        else:
            self._num_followed += 1
            self._follower.advance(token_id)

    def rollback(self, num_tokens: int) -> None:
        num_beyond = min(num_tokens, self._num_beyond)
        num_followed = num_tokens - num_beyond
        if num_followed > self._num_followed:
            raise ValueError(f"Only {self._num_followed + self._num_beyond} tokens can be taken back.")
        self._num_beyond -= num_beyond
        self._has_ended = self._has_ended and self._num_beyond > 0
        if num_followed:
            self._num_followed -= num_followed
            self._follower.rollback(num_followed)

    @property
    def is_finished(self) -> bool:
        """As far as known without waiting."""
        if self._eos_token_ids or self._has_ended:
            return self._has_ended
        return self._follower.wait(0.0) and self._follower.has_ended

    def _is_complete(self) -> bool:
        """Waits if `wait` has not. Raises InvalidRequest and GenerationFailed."""
        if self._has_ended:
            return True
        self._follower.wait(_FOREVER_S)
        self._follower.check()
        return self._follower.has_ended


class _Progress(NamedTuple):
    """Where a sequence is in its reasoning."""

    is_inside: bool
    may_begin: bool  # beside what the inner constraint allows
    num_tokens: int = 0  # of reasoning
    tail: tuple[int, ...] = ()  # the last tokens, to find a delimiter
    num_forced: int = 0


class ReasoningConstraint:
    """Lets reasoning pass, ends it when its budget is spent, and constrains what follows."""

    def __init__(
        self,
        delimiters: ReasoningDelimiters,
        *,
        inner: TokenConstraint | None,
        budget: int | None,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        """`budget`: tokens of reasoning, without its delimiters; None = no limit.

        With an `inner` constraint, reasoning can't end the sequence, as the requested output must follow, and
        can begin only with the first token. Without one, it can begin anywhere.
        """
        self._delimiters = delimiters
        self._inner = inner
        self._budget = budget
        self._forbidden = tuple(eos_token_ids) if inner is not None else ()
        self._progress = _Progress(delimiters.is_open, not delimiters.is_open and len(delimiters.start) == 1)
        # Before each of the last tokens, and whether `inner` has accepted that token.
        self._before: deque[tuple[_Progress, bool]] = deque(maxlen=MAX_ROLLBACK)

    def wait(self, timeout_s: float) -> bool:
        return self._progress.is_inside or self._inner is None or self._inner.wait(timeout_s)

    def fill_mask(self, mask: Any, row: int) -> bool:
        if self._progress.is_inside:
            if not self._is_forcing:
                return all_but(mask, row, self._forbidden)
            only(mask, row, (self._delimiters.end[self._progress.num_forced],))
            return True
        if self._inner is None or not self._inner.fill_mask(mask, row):
            return False
        if self._progress.may_begin:
            allow(mask, row, self._delimiters.start[0])
        return True

    def accept(self, token_id: int) -> None:
        before, is_inner = self._progress, False
        if before.is_inside:
            self._progress = self._after_reasoning(token_id)
        elif before.may_begin and token_id == self._delimiters.start[0]:
            self._progress = _BEGUN
        elif self._inner is not None:
            is_inner = True
            self._inner.accept(token_id)
            self._progress = before._replace(may_begin=False) if before.may_begin else before
        else:
            tail = (*before.tail, token_id)[-len(self._delimiters.start) :]
            self._progress = _BEGUN if tail == self._delimiters.start else before._replace(tail=tail)
        self._before.append((before, is_inner))

    def rollback(self, num_tokens: int) -> None:
        if num_tokens > len(self._before):
            raise ValueError(f"Only {len(self._before)} tokens can be taken back.")
        num_inner = 0
        for _ in range(num_tokens):
            self._progress, is_inner = self._before.pop()
            num_inner += is_inner
        if num_inner and self._inner is not None:
            self._inner.rollback(num_inner)

    @property
    def is_finished(self) -> bool:
        return not self._progress.is_inside and self._inner is not None and self._inner.is_finished

    @property
    def _is_forcing(self) -> bool:
        return self._budget is not None and self._progress.num_tokens >= self._budget

    def _after_reasoning(self, token_id: int) -> _Progress:
        before = self._progress
        tail = (*before.tail, token_id)[-len(self._delimiters.end) :]
        if tail == self._delimiters.end:
            return _Progress(is_inside=False, may_begin=False)
        if self._is_forcing:
            return before._replace(tail=tail, num_forced=before.num_forced + 1)
        return before._replace(tail=tail, num_tokens=before.num_tokens + 1)


_BEGUN = _Progress(is_inside=True, may_begin=False)


def only(mask: Any, row: int, token_ids: Sequence[int]) -> None:
    """Allow only these tokens."""
    mask[row] = 0
    for token_id in token_ids:
        allow(mask, row, token_id)


def all_but(mask: Any, row: int, token_ids: Sequence[int]) -> bool:
    """Allow every token but these; returns False and writes nothing if there are none."""
    if not token_ids:
        return False
    mask[row] = -1
    for token_id in token_ids:
        word, bit = divmod(token_id, 32)
        mask[row, word] &= ~_BITS[bit]
    return True


def allow(mask: Any, row: int, token_id: int) -> None:
    word, bit = divmod(token_id, 32)
    mask[row, word] |= _BITS[bit]


_BITS = [1 << bit if bit < 31 else -(1 << 31) for bit in range(32)]  # int32 has a sign
_FOREVER_S = 3600.0
