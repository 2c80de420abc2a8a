"""One sequence's constraint: a grammar, perhaps after a thought, which may have a budget of tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from engine.core.types import TokenConstraint
from engine.structured.grammar_link import GrammarLink, Said
from engine.structured.spec import ReasoningDelimiters
from engine.structured.wire import Answer, Ask


class GrammarConstraint:
    """What the grammar allows; once it is complete, the tokens that end a sequence and nothing else.

    The grammar's process is asked as soon as a token is accepted, and answers while the engine goes on.
    """

    def __init__(self, link: GrammarLink, eos_token_ids: Sequence[int]) -> None:
        self._link = link
        self._eos_token_ids = tuple(eos_token_ids)
        self._row = -1
        self._number = 0  # of the question what may come next
        self._asked = 0.0
        self._said: Said | None = None
        self._has_ended = False

    def __del__(self) -> None:
        if self._row >= 0:
            self._link.close_row(self._row, self._number)

    def wait(self, timeout_s: float) -> bool:
        """Never, where the output is complete and no end can be said: `is_finished` says so."""
        if self._has_ended:
            return True
        if self._said is None and not self._is_answered(timeout_s):
            return False
        return bool(self._eos_token_ids) or not self.is_finished

    def _is_answered(self, timeout_s: float) -> bool:
        if self._row < 0:
            self._row, self._number = self._link.open()
            self._asked = time.monotonic()
        if self._link.wait(self._number, timeout_s):
            return True
        self._link.check_time(self._asked)
        return not self._link.is_alive

    def fill_mask(self, mask: Any, row: int) -> bool:
        said = self._what_may_come()
        if said is None or said.has_ended:  # beyond its end only with ignore_eos
            only(mask, row, self._eos_token_ids)
            return True
        if said.what == Answer.ANYTHING:
            return False
        mask[row].numpy()[:] = self._link.mask(self._row)
        return True

    def accept(self, token_id: int) -> None:
        said = self._what_may_come()
        if said is None or said.has_ended:
            return
        if said.what == Answer.RESTRICTED and not self._link.is_allowed(self._row, token_id):
            raise ValueError(f"Token {token_id} doesn't follow the grammar.")
        self._has_ended = token_id in self._eos_token_ids
        if not self._has_ended:
            self._number, self._said = self._link.ask(Ask.TOKEN, self._row, token_id), None
            self._asked = time.monotonic()

    @property
    def is_finished(self) -> bool:
        """As far as is known without waiting."""
        if self._eos_token_ids or self._has_ended:
            return self._has_ended
        if self._said is None and self._is_answered(0.0):
            self._said = self._link.answer(self._number)
        return self._said is not None and self._said.has_ended

    def _what_may_come(self) -> Said | None:
        """None after the end. Waits, if nobody has. Raises InvalidRequest and GenerationFailed."""
        if self._has_ended:
            return None
        while self._said is None:
            if self._is_answered(1.0):
                self._said = self._link.answer(self._number)
        if self._said.what in (Answer.FAILED, Answer.REFUSED):
            raise self._said.error(self._link.param)
        return self._said


class ReasoningConstraint:
    """Lets a thought pass, ends it when its budget is spent, and constrains what follows."""

    def __init__(
        self,
        marks: ReasoningDelimiters,
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

    def wait(self, timeout_s: float) -> bool:
        return self._is_inside or self._inner is None or self._inner.wait(timeout_s)

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
