"""Threads for work that may never end and can't be ended: few at a time, given up after a while, counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from engine.errors import EngineError

Result = TypeVar("Result")


class CompilerBusy(EngineError):
    """Too many compilations wait, or go on without end; told as a full queue is."""

    code = "queue_full"


class CompileThreads:
    """Belongs to one event loop. The threads are daemons: they don't keep the process from ending."""

    def __init__(self, *, num_threads: int, max_stuck: int, max_waiting: int, timeout_s: float) -> None:
        self._turns = asyncio.Semaphore(num_threads)
        self._max_stuck = max_stuck
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._stuck: set[Future[object]] = set()
        self._num_here = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Raises what `work` raises, TimeoutError after its time, CompilerBusy if there is no room."""
        self._stuck = {future for future in self._stuck if not future.done()}
        if len(self._stuck) >= self._max_stuck or self._num_here >= self._max_waiting:
            raise CompilerBusy("The server is busy compiling schemas and grammars: try again later.")
        self._num_here += 1
        try:
            async with self._turns:
                return await self._run(work)
        finally:
            self._num_here -= 1

    async def _run(self, work: Callable[[], Result]) -> Result:
        future: Future[Result] = Future()
        threading.Thread(target=_fulfil, args=(future, work), name="structured", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self._timeout_s)
        except TimeoutError:
            self._stuck.add(future)  # type: ignore[arg-type]  # only asked whether it is done
            raise


def _fulfil(future: Future[Result], work: Callable[[], Result]) -> None:
    try:
        result = work()
    except BaseException as error:  # a task's root: whoever waits is told
        future.set_exception(error)
    else:
        future.set_result(result)
