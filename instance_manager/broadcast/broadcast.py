"""A notification that wakes all waiters."""

from __future__ import annotations

import asyncio


class Broadcast:
    """A caller that checks a condition and then waits, with no await in between, misses no notification."""

    def __init__(self) -> None:
        self._event = asyncio.Event()  # replaced each time it is set
        self.count = 0  # of notifications so far

    def notify_all(self) -> None:
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait_for_change(self, timeout_s: float | None) -> None:
        """Return after the next notification, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return
