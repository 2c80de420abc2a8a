"""An event loop in a thread of its own: callers need none, and may be in one that runs, as in a notebook."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from engine.errors import EngineDead

T = TypeVar("T")
ItemT = TypeVar("ItemT")

Report = Callable[[ItemT], None]

_CANCEL_S = 10.0  # a step of a large model may take seconds


class LoopThread:
    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
        self._runner = asyncio.Runner(loop_factory=loop_factory)
        self._is_running = threading.Event()
        self._lock = threading.Lock()
        self._jobs: set[_Job[Any, Any]] = set()  # that haven't ended
        self._is_closed = False
        self._owner = os.getpid()
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self._thread.start()
        self._is_running.wait()

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def call(
        self,
        work: Callable[[Report[ItemT]], Coroutine[Any, Any, T]],
        receive: Callable[[ItemT], None] = lambda item: None,
    ) -> T:
        """Run `work` on the loop and wait; `receive` gets here, in the caller's thread, what it reports.

        An error here, such as Ctrl-C, cancels the work, which has ended when the error goes on. Raises
        EngineDead if the loop was closed, and in a forked process.
        """
        if os.getpid() != self._owner:
            raise EngineDead(
                f"The engine runs in process {self._owner}, of which this is a fork: create the LLM where it "
                "is used."
            )
        job = _Job(work)
        with self._lock:
            if self._is_closed:
                raise EngineDead("The engine was shut down.")
            self._jobs.add(job)
            self._loop.call_soon_threadsafe(job.start)
        try:
            return job.wait(receive)
        except BaseException:
            job.cancel(self._loop)
            raise
        finally:
            self._jobs.discard(job)

    def close(self) -> None:
        """End the thread; what still runs on its loop is cancelled."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._loop.call_soon_threadsafe(self._stop.set)
        if not self.is_current:
            self._thread.join()

    def _run(self) -> None:
        with self._runner as runner:
            runner.run(self._until_closed())
        for job in tuple(self._jobs):
            job.end()  # it had not begun

    async def _until_closed(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._is_running.set()
        await self._stop.wait()


class _Job(Generic[ItemT, T]):
    """Work on the loop, and the queue by which the caller hears of it."""

    def __init__(self, work: Callable[[Report[ItemT]], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._items: SimpleQueue[tuple[ItemT] | None] = SimpleQueue()  # None: it has ended
        self._ended = threading.Event()
        self._task: asyncio.Task[T] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._work(lambda item: self._items.put((item,))))
        self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # retrieved here, since the caller may have gone
        self.end()

    def end(self) -> None:
        self._ended.set()
        self._items.put(None)

    def wait(self, receive: Callable[[ItemT], None]) -> T:
        while (item := self._items.get()) is not None:
            receive(item[0])
        if self._task is None or self._task.cancelled():
            raise EngineDead("The engine was shut down while this call ran.")
        return self._task.result()

    def cancel(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed, so the work has ended
            loop.call_soon_threadsafe(self._cancel)
            self._ended.wait(_CANCEL_S)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
