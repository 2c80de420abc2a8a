"""Something has happened: one wakes all who wait for that."""

from __future__ import annotations

import asyncio


class Broadcast:
    """Nobody who looks first and then waits misses anything, as long as it doesn't await in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()  # replaced each time it is set
        self.count = 0  # how often there was some

    def notify_all(self) -> None:
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait_for_change(self, timeout_s: float | None) -> None:
        """For the next; return at last after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return
