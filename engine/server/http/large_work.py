"""Processes large bodies and responses in threads, one at a time and with pauses.

A thread that runs Python holds the GIL, which the event loop and the engine's thread need for every token of
every stream. So only one such job runs at a time, and a long one pauses for as long as it has worked
(`GilThrottle`). Work that releases the GIL, such as tokenizing, may run beside it.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

LARGE_BYTES = 64 * 2**10  # above this, work on a text is done in a thread, to keep streams flowing
_MAX_PAUSE_S = 0.05
_TIME_SLICE_S = (
    0.002  # the interpreter's default is 5 ms, and every PyTorch operator has to acquire the GIL again
)


class GilThrottle:
    """For one long job, which calls `pause` at least every few thousand operations."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def pause(self) -> None:
        """After a time slice, sleep for as long as the job has worked. Never sleeps on an event loop."""
        worked_s = time.perf_counter() - self._since
        if worked_s > _TIME_SLICE_S:
            if not _is_on_loop():
                time.sleep(min(worked_s, _MAX_PAUSE_S))
            self._since = time.perf_counter()


def _is_on_loop() -> bool:
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False


class LargeWork:
    """One per server; belongs to one event loop."""

    def __init__(self) -> None:
        self._python_jobs = asyncio.Semaphore(1)
        self._gil_free_jobs = asyncio.Semaphore(1)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread when its turn comes."""
        return await _in_thread(work, self._python_jobs)

    async def run_released(self, work: Callable[[], T]) -> T:
        """The same for work that releases the GIL."""
        return await _in_thread(work, self._gil_free_jobs)


async def _in_thread(work: Callable[[], T], turn: asyncio.Semaphore) -> T:
    """The caller can be cancelled; the thread cannot, so it keeps its turn until it ends."""
    await turn.acquire()
    context = contextvars.copy_context()
    running = asyncio.get_running_loop().run_in_executor(None, context.run, work)

    def end(done: asyncio.Future[T]) -> None:
        turn.release()
        if not done.cancelled():
            done.exception()  # retrieved here, since the caller may be gone

    running.add_done_callback(end)
    return await asyncio.shield(running)
