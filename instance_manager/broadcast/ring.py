"""A bounded sequence that many readers follow at their own pace: log lines and events.

The writer never waits and doesn't know its readers. A reader that falls behind by more than the capacity
continues with the oldest item kept; items are numbered, so it can detect the gap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class BroadcastRing(Generic[T]):
    """The last `capacity` items of an endless sequence, numbered from 1."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque(maxlen=capacity)
        self._changed = asyncio.Event()  # replaced each time it is set
        self._closed = False
        self.last_number = 0

    @property
    def capacity(self) -> int:
        return self._items.maxlen or 0

    def extend(self, items: Iterable[T]) -> None:
        """Append and wake all followers."""
        before = self.last_number
        for item in items:
            self._items.append(item)
            self.last_number += 1
        if self.last_number != before:
            self._wake()

    def tail(self, count: int) -> list[T]:
        """The newest `count` items, oldest first."""
        return list(islice(self._items, max(0, len(self._items) - count), None)) if count > 0 else []

    def since(self, number: int) -> list[T]:
        """The kept items with a number above `number`."""
        return self.tail(self.last_number - number)

    async def follow(self, after: int) -> AsyncIterator[T]:
        """Items newer than number `after`, then new ones as they arrive, until the ring is closed."""
        while True:
            batch = self.since(after)
            after = self.last_number
            for item in batch:
                yield item
            if self.last_number > after:
                continue
            if self._closed:
                return
            await self._changed.wait()

    def close(self) -> None:
        """End every `follow` once it has returned all items."""
        self._closed = True
        self._wake()

    def reopen(self) -> None:
        """Continue the sequence after `close`."""
        self._closed = False

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
