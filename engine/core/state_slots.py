"""Slots for what layers carry from token to token beside the KV cache: two for each running sequence.

A step reads one of the two and writes the other; they change roles once its tokens count as computed. So a step,
or a part of it, can run again: what it read is still there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class SlotPair(NamedTuple):
    read: int  # after the tokens that are computed; without meaning if there are none
    write: int

    @property
    def swapped(self) -> SlotPair:
        return SlotPair(self.write, self.read)


class StateSlots:
    def __init__(self, num_slots: int) -> None:
        self.num_pairs = num_slots // 2
        self._free = [SlotPair(2 * index, 2 * index + 1) for index in reversed(range(self.num_pairs))]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> SlotPair:
        """The caller has checked that one is free."""
        return self._free.pop()

    def give_back(self, pair: SlotPair) -> None:
        self._free.append(pair)

    def check_integrity(self, pairs: Iterable[SlotPair]) -> None:
        """Raise RuntimeError unless each slot is free or one live sequence's, whose `pairs` these are."""
        slots = sorted(slot for pair in (*self._free, *pairs) for slot in pair)
        if slots != list(range(2 * self.num_pairs)):
            raise RuntimeError(f"Of {2 * self.num_pairs} state slots, these are free or in use: {slots}.")
