"""Logprobs of an answer that is collected whole: kept as numbers, and looked at a few at a time.

As objects, those of a long answer take ten times the memory, and the garbage collector's time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from engine.core.types import PositionLogprobs, TokenLogprob

T = TypeVar("T")


class PackedLogprobs(Sequence[PositionLogprobs]):
    """Grows at its end; gives what it was given."""

    def __init__(self) -> None:
        self._ends = array("q")  # by position: where its entries end; the first of them is the chosen one
        self._token_ids = array("q")
        self._logprobs = array("d")
        self._ranks = array("q")

    def extend(self, positions: Sequence[PositionLogprobs]) -> None:
        for position in positions:
            for token in (position.chosen, *position.top):
                self._token_ids.append(token.token_id)
                self._logprobs.append(token.logprob)
                self._ranks.append(token.rank)
            self._ends.append(len(self._token_ids))

    @property
    def num_entries(self) -> int:
        return len(self._token_ids)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> PositionLogprobs: ...

    @overload
    def __getitem__(self, index: slice) -> list[PositionLogprobs]: ...

    def __getitem__(self, index: int | slice) -> PositionLogprobs | list[PositionLogprobs]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, end = self._ends[index - 1] if index else 0, self._ends[index]
        chosen, *top = map(
            TokenLogprob, self._token_ids[first:end], self._logprobs[first:end], self._ranks[first:end]
        )
        return PositionLogprobs(chosen, tuple(top))


class Rows(Generic[T]):
    """A list of JSON values, each of which is made when it is written."""

    def __init__(
        self, positions: Sequence[T], make: Callable[[T], Any], *, before: Sequence[Any] = ()
    ) -> None:
        """`before`: values that stand before those of the positions."""
        self._before = before
        self._positions = positions
        self._make = make

    def __radd__(self, before: Sequence[Any]) -> Rows[T]:
        return Rows(self._positions, self._make, before=[*before, *self._before])

    def parts(self, size: int) -> Iterator[list[Any]]:
        """All of them, at most so many at a time."""
        for start in range(0, len(self._before), size):
            yield list(self._before[start : start + size])
        for start in range(0, len(self._positions), size):
            yield [self._make(one) for one in self._positions[start : start + size]]
