"""A bounded sequence that many readers follow at their own pace: log lines and events.

The writer never waits and never knows its readers. A reader that falls behind by more than the ring holds
goes on with the oldest item kept; items are numbered, so it can tell.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class BroadcastRing(Generic[T]):
    """The last `capacity` items of an endless sequence; the first item ever has the number 1."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque(maxlen=capacity)
        self._news = asyncio.Event()  # replaced each time it is set
        self._closed = False
        self.last_number = 0

    @property
    def capacity(self) -> int:
        return self._items.maxlen or 0

    def extend(self, items: Iterable[T]) -> None:
        """Append; whoever follows wakes up."""
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
        """The items kept that are newer than the one numbered `number`."""
        return self.tail(self.last_number - number)

    async def follow(self, after: int) -> AsyncIterator[T]:
        """Items newer than number `after`, then new ones as they come; ends when the ring is closed."""
        while True:
            batch = self.since(after)
            after = self.last_number
            for item in batch:
                yield item
            if self.last_number > after:
                continue
            if self._closed:
                return
            await self._news.wait()

    def close(self) -> None:
        """End every `follow` once it has seen all there is."""
        self._closed = True
        self._wake()

    def reopen(self) -> None:
        """Let the sequence go on after `close`."""
        self._closed = False

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
