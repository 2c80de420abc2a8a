"""Between the server's event loop and an engine's thread.

One thread builds the core and runs its steps; one loop serves HTTP. They meet in two places only: a queue of
commands, emptied once per step, and one `call_soon_threadsafe` per step that delivers all its outputs. Both
carry plain data, but for a request's constraint; the loop also reads the core's limits and counters.

Knows nothing of torch (`build_core` brings it in) nor of text.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from engine.core.sleep import MemoryUsage
from engine.core.sleep_controller import SleepController, Sleeps
from engine.core.thread_calls import CallOutcome, ThreadCall, ThreadCalls
from engine.core.types import EngineStats
from engine.errors import EngineDead

log = logging.getLogger(__name__)

CoreT = TypeVar("CoreT")
CommandT = TypeVar("CommandT")
OutputT = TypeVar("OutputT")


class EngineThread(ABC, Generic[CoreT, CommandT, OutputT]):
    """An engine as the server sees it, without its requests: those are the subclass's.

    Public methods belong to the loop that has called `start`.
    """

    def __init__(self, build_core: Callable[[], CoreT]) -> None:
        """`build_core` runs in the engine's thread: it may be slow, and import torch."""
        self._build_core = build_core
        # A command of the subclass, a call, or (None) stop.
        self._commands: SimpleQueue[CommandT | ThreadCall | None] = SimpleQueue()
        self._idle = asyncio.Event()  # set while there are no requests
        self._idle.set()
        self._calls = ThreadCalls(self._commands.put)
        self.sleep_controller = SleepController(self._call, idle=self._idle, abort_all=self._abort_all)
        self._core: CoreT | None = None
        self._thread: Thread | None = None
        self._is_stopping = False
        self._failure: str | None = None

    # For the server

    async def start(self) -> None:
        """Build the core; raises what building it raises. If cancelled, the thread ends once it is built."""
        loop = asyncio.get_running_loop()
        self._built: asyncio.Future[CoreT] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._thread = Thread(target=self._run_thread, args=(loop,), name="engine", daemon=True)
        self._thread.start()
        try:
            self._core = await self._built
        except asyncio.CancelledError:
            self._commands.put(None)
            raise

    @property
    def is_alive(self) -> bool:
        """Whether the engine accepts requests."""
        return self._core is not None and not self._is_stopping and self._failure is None

    @property
    @abstractmethod
    def num_unfinished(self) -> int:
        """Requests that the engine has not released yet."""

    @property
    @abstractmethod
    def request_ids(self) -> list[str]:
        """The ids of those requests, and of held work that consists of several."""

    @property
    @abstractmethod
    def max_model_len(self) -> int:
        """The most tokens of one request. May raise EngineDead before the core is built."""

    @property
    @abstractmethod
    def memory(self) -> MemoryUsage:
        """Memory used by the model and its cache now. Raises EngineDead before the core is built."""

    @abstractmethod
    def stats(self) -> EngineStats: ...

    @abstractmethod
    def abort(self, request_id: str) -> None:
        """Abort a request. Unknown ids are ignored."""

    async def wait_ended(self) -> None:
        """Wait until the engine's thread has ended; raises EngineDead unless `shutdown` ended it."""
        await asyncio.shield(self._ended)
        if self._failure is not None:
            raise EngineDead(self._failure)

    async def shutdown(self, timeout_s: float) -> bool:
        """End open requests, then the thread. False if its step takes longer than `timeout_s`.

        What is still open then raises EngineDead; the thread is a daemon and doesn't keep the process alive.
        """
        self._is_stopping = True
        if self._thread is None:
            return True
        self._stop_requests()
        self._commands.put(None)
        done, _ = await asyncio.wait([self._ended], timeout=timeout_s)
        self._end(f"The engine was shut down, and its last step took longer than {timeout_s} s.")
        if done:
            self._thread.join()  # reporting its end was its last act
        return bool(done)

    # For the subclass, on the loop

    async def _call(self, method: str, *arguments: Any) -> None:
        """Have the thread call a method of the sleeper, between steps. Raises what that does, EngineDead."""
        self._get_core()
        await self._calls.run(method, *arguments)

    def _get_core(self) -> CoreT:
        if self._core is None or not self.is_alive:
            why = "is shutting down" if self._is_stopping else "has not been started"
            raise EngineDead(self._failure or f"The engine {why}.")
        return self._core

    @abstractmethod
    def _stop_requests(self) -> None:
        """End open requests because of a shutdown; the thread still runs."""

    @abstractmethod
    def _end_requests(self, failure: str) -> None:
        """End open requests: the thread has ended, or nobody waits for it."""

    @abstractmethod
    def _on_outputs(self, outputs: list[OutputT]) -> None:
        """Take a step's outputs."""

    # For the subclass, in the thread

    @abstractmethod
    def _sleeper(self, core: CoreT) -> Sleeps: ...

    @abstractmethod
    def _has_work(self, core: CoreT) -> bool: ...

    @abstractmethod
    def _obey(self, core: CoreT, command: CommandT) -> Iterable[OutputT]: ...

    @abstractmethod
    def _step(self, core: CoreT) -> Iterable[OutputT]: ...

    def _on_core(self, core: CoreT) -> None:
        """Called once the core is built."""
        return

    def _check_idle(self, core: CoreT) -> None:
        """Called before the thread waits for work."""
        return

    # On the loop, called by the thread

    def _on_built(self, core: CoreT) -> None:
        if not self._built.done():
            self._built.set_result(core)

    def _on_ended(self, error: BaseException | None) -> None:
        if error is not None and not self._built.done():
            self._built.set_exception(error)
        if error is not None:
            self._failure = f"The engine has ended: {type(error).__name__}: {error}"
        self._end(self._failure or "The engine has ended.")
        self._ended.set_result(None)

    def _end(self, failure: str) -> None:
        self._end_requests(failure)
        self._idle.set()
        self._calls.end(EngineDead(failure))

    def _abort_all(self) -> None:
        for request_id in self.request_ids:
            self.abort(request_id)

    # In the thread

    def _run_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread's root: reports its end to the loop, whatever the cause."""
        end: BaseException | None = None
        try:
            core = self._build_core()
            self._on_core(core)
            loop.call_soon_threadsafe(self._on_built, core)
            self._run_steps(
                core,
                deliver=lambda outputs: loop.call_soon_threadsafe(self._on_outputs, outputs),
                settle=lambda outcome: loop.call_soon_threadsafe(self._calls.settle, outcome),
            )
        except BaseException as error:
            log.exception("The engine's thread ends.")
            end = error
        with suppress(RuntimeError):  # the loop is closed: nothing waits for the end
            loop.call_soon_threadsafe(self._on_ended, end)

    def _run_steps(
        self,
        core: CoreT,
        *,
        deliver: Callable[[list[OutputT]], object],
        settle: Callable[[CallOutcome], object],
    ) -> None:
        """Until a stop command: obey all commands, run one step, deliver. Blocks while idle."""
        while True:
            outputs: list[OutputT] = []
            for command in self._pending_commands(core):
                if command is None:
                    deliver(outputs)
                    return
                if isinstance(command, ThreadCall):
                    settle(command.run(self._sleeper(core)))
                else:
                    outputs += self._obey(core, command)
            if self._has_work(core):
                outputs += self._step(core)
            if outputs:
                deliver(outputs)

    def _pending_commands(self, core: CoreT) -> Iterator[CommandT | ThreadCall | None]:
        """All queued commands; if the core is idle, waits for the first."""
        if not self._has_work(core):
            self._check_idle(core)
            yield self._commands.get()
        with suppress(Empty):
            while True:
                yield self._commands.get_nowait()
