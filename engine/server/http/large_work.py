"""Work on large bodies and answers: off the event loop, a little at a time, and never many at once.

A thread that computes in Python holds the interpreter, which the loop and the engine's thread need for every
token of every stream. So such work comes one at a time, and what is long rests as long as it has worked
(`GilThrottle`). Work that leaves the interpreter alone, such as a tokenizer's, may run beside it.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

LARGE_BYTES = 64 * 2**10  # from here on, work on a text goes to a thread: the loop has streams to serve
_LONGEST_REST_S = 0.05
_TURN_S = 0.002  # the interpreter's own default is 5 ms, and each PyTorch operator has to ask for it again


class GilThrottle:
    """For one long piece of work, which calls `pause` every few thousand operations or fewer."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def pause(self) -> None:
        """After a turn's work, let the others go on for as long as it has taken. Not on an event loop."""
        worked_s = time.perf_counter() - self._since
        if worked_s > _TURN_S:
            if not _is_on_loop():
                time.sleep(min(worked_s, _LONGEST_REST_S))
            self._since = time.perf_counter()


def _is_on_loop() -> bool:
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False


class LargeWork:
    """A server's. Belongs to one event loop."""

    def __init__(self) -> None:
        self._interpreted = asyncio.Semaphore(1)
        self._released = asyncio.Semaphore(1)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which runs in a thread when its turn has come."""
        return await _in_thread(work, self._interpreted)

    async def run_released(self, work: Callable[[], T]) -> T:
        """The same of work that doesn't hold the interpreter."""
        return await _in_thread(work, self._released)


async def _in_thread(work: Callable[[], T], turn: asyncio.Semaphore) -> T:
    """Who waits may be cancelled; a thread can't be, and its turn lasts until it has ended."""
    await turn.acquire()
    context = contextvars.copy_context()
    running = asyncio.get_running_loop().run_in_executor(None, context.run, work)

    def end(done: asyncio.Future[T]) -> None:
        turn.release()
        if not done.cancelled():
            done.exception()  # nobody may be left to ask for it

    running.add_done_callback(end)
    return await asyncio.shield(running)
