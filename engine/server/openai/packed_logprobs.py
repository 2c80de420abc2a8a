"""The logprobs of a non-streamed response, stored in arrays and converted to objects in batches.

As objects, those of a long response would take ten times the memory and slow down garbage collection.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from engine.core.types import PositionLogprobs, TokenLogprob

T = TypeVar("T")


class PackedLogprobs(Sequence[PositionLogprobs]):
    """An append-only sequence of positions."""

    def __init__(self) -> None:
        self._ends = array(
            "q"
        )  # per position: the end of its entries, of which the first is the chosen token
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
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, end = self._ends[index - 1] if index else 0, self._ends[index]
        chosen, *top = map(
            TokenLogprob, self._token_ids[first:end], self._logprobs[first:end], self._ranks[first:end]
        )
        return PositionLogprobs(chosen, tuple(top))


class Rows(Generic[T]):
    """A list of JSON values that are created while they are written."""

    def __init__(
        self, positions: Sequence[T], make: Callable[[T], Any], *, before: Sequence[Any] = ()
    ) -> None:
        """`before`: values that precede those of the positions."""
        self._before = before
        self._positions = positions
        self._make = make

    def __radd__(self, before: Sequence[Any]) -> Rows[T]:
        return Rows(self._positions, self._make, before=[*before, *self._before])

    def parts(self, size: int) -> Iterator[list[Any]]:
        """All values, in lists of at most `size`."""
        for start in range(0, len(self._before), size):
            yield list(self._before[start : start + size])
        for start in range(0, len(self._positions), size):
            yield [self._make(position) for position in self._positions[start : start + size]]
