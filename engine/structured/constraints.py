"""One sequence's constraint: a grammar, perhaps after a thought, which may have a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.structured.spec import ThinkingMarks
from engine.types import TokenConstraint

if TYPE_CHECKING:
    from xgrammar import GrammarMatcher


class GrammarConstraint:
    """What the grammar allows; once it is complete, the tokens that end a sequence and nothing else."""

    def __init__(self, matcher: GrammarMatcher, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._eos_token_ids = tuple(eos_token_ids)

    def fill_mask(self, mask: Any, row: int) -> bool:
        if self._matcher.is_terminated():  # beyond its end only with ignore_eos
            only(mask, row, self._eos_token_ids)
            return True
        is_restricted = self._matcher.fill_next_token_bitmask(mask, row)
        if is_restricted and not mask[row].any():
            raise ValueError("no token of the model's can go on here")
        return is_restricted

    def accept(self, token_id: int) -> None:
        if not self._matcher.is_terminated() and not self._matcher.accept_token(token_id):
            raise ValueError(f"Token {token_id} doesn't follow the grammar.")

    @property
    def is_finished(self) -> bool:
        return self._matcher.is_terminated()


class ThinkingConstraint:
    """Lets a thought pass, ends it when its budget is spent, and constrains what follows."""

    def __init__(
        self,
        marks: ThinkingMarks,
        *,
        inner: TokenConstraint | None,
        budget: int | None,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        """`budget`: tokens of the thought, its marks not counted; None = no limit.

        With an `inner`, a thought can't end the sequence: what was asked for is still to come; and it may
        begin with the first token only. Without one, it may begin anywhere.
        """
        self._marks = marks
        self._inner = inner
        self._budget = budget
        self._forbidden = tuple(eos_token_ids) if inner is not None else ()
        self._is_inside = marks.is_open
        self._may_begin = not marks.is_open and len(marks.start) == 1  # beside what `inner` allows
        self._num_thought = 0
        self._tail: tuple[int, ...] = ()  # the last tokens, to find the thought's end by, or its start
        self._num_forced = 0

    def fill_mask(self, mask: Any, row: int) -> bool:
        if self._is_inside:
            if not self._is_forcing:
                return all_but(mask, row, self._forbidden)
            only(mask, row, (self._marks.end[self._num_forced],))
            return True
        if self._inner is None or not self._inner.fill_mask(mask, row):
            return False
        if self._may_begin:
            allow(mask, row, self._marks.start[0])
        return True

    def accept(self, token_id: int) -> None:
        if self._is_inside:
            self._think(token_id)
        elif self._may_begin and token_id == self._marks.start[0]:
            self._begin()
        elif self._inner is not None:
            self._may_begin = False
            self._inner.accept(token_id)
        else:
            self._tail = (*self._tail, token_id)[-len(self._marks.start) :]
            if self._tail == self._marks.start:
                self._begin()

    def _begin(self) -> None:
        self._is_inside, self._may_begin = True, False
        self._tail, self._num_thought, self._num_forced = (), 0, 0

    @property
    def is_finished(self) -> bool:
        return not self._is_inside and self._inner is not None and self._inner.is_finished

    @property
    def _is_forcing(self) -> bool:
        return self._budget is not None and self._num_thought >= self._budget

    def _think(self, token_id: int) -> None:
        if self._is_forcing:
            self._num_forced += 1
        else:
            self._num_thought += 1
        self._tail = (*self._tail, token_id)[-len(self._marks.end) :]
        if self._tail == self._marks.end:
            self._is_inside, self._tail = False, ()


def only(mask: Any, row: int, token_ids: Sequence[int]) -> None:
    """Allow these tokens and no other."""
    mask[row] = 0
    for token_id in token_ids:
        allow(mask, row, token_id)


def all_but(mask: Any, row: int, token_ids: Sequence[int]) -> bool:
    """Allow every token but these; False, and nothing written, if there are none."""
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
