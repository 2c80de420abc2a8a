"""Between the server's event loop and the engine's thread.

One thread builds the core and runs its steps; one loop serves HTTP. They meet in two places only: a queue of
commands, emptied once per step, and one `call_soon_threadsafe` per step that delivers all its outputs. Every
early end of a request (the client left, a stop string, a shutdown) is the same abort command.

Knows nothing of torch (`build_core` brings it in) nor of text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeAlias

from engine.core.engine_core import EngineCore
from engine.core.sleep import MemoryUsage
from engine.core.sleep_controller import SleepController
from engine.core.thread_calls import ThreadCall, ThreadCalls
from engine.core.token_stream import TokenStream
from engine.core.types import EngineRequest, EngineStats, TokenDelta
from engine.errors import EngineDead, InvalidRequest

__all__ = ["AsyncEngine", "TokenStream"]

log = logging.getLogger(__name__)


# The loop's commands to the thread: run this request, abort the one with this id, call this, or (None) stop.
_Command: TypeAlias = EngineRequest | str | ThreadCall[EngineCore] | None


class AsyncEngine:
    """The engine as the server sees it; every method belongs to the loop that has called `start`.

    A request's id is in use until the engine has released the request, at the end of the step that runs when
    its reader leaves.
    """

    def __init__(self, build_core: Callable[[], EngineCore]) -> None:
        """`build_core` runs in the engine's thread: it may be slow, and import torch."""
        self._build_core = build_core
        self._commands: SimpleQueue[_Command] = SimpleQueue()
        self._streams: dict[str, TokenStream] = {}
        self._holds: dict[str, Callable[[], None]] = {}  # by request id: what an abort calls
        self._idle = asyncio.Event()  # set while there are neither streams nor holds
        self._idle.set()
        self._calls: ThreadCalls[EngineCore] = ThreadCalls(self._commands.put)
        self.sleep_controller = SleepController(self._call, idle=self._idle, abort_all=self._abort_all)
        self._core: EngineCore | None = None
        self._thread: Thread | None = None
        self._is_stopping = False
        self._failure: str | None = None

    def __repr__(self) -> str:
        state = "alive" if self.is_alive else "not alive"
        return f"<AsyncEngine {state}, {len(self._streams)} streams, {self._core!r}>"

    # For the server

    async def start(self) -> None:
        """Build the core; raises what building it raises. If cancelled, the thread ends once it is built."""
        loop = asyncio.get_running_loop()
        self._built: asyncio.Future[EngineCore] = loop.create_future()
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
    def num_unfinished(self) -> int:
        """Requests that the engine has not released yet."""
        return len(self._streams)

    @property
    def request_ids(self) -> list[str]:
        """The ids of those requests, and of held work that consists of several."""
        return [*self._streams, *self._holds]

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together. Raises EngineDead before the core is built."""
        return self._get_core().max_model_len

    def stats(self) -> EngineStats:
        if self._core is None:
            return EngineStats()
        return replace(self._core.stats(), sleep_level=self.sleep_controller.state.level)

    @property
    def memory(self) -> MemoryUsage:
        """Memory used by the model and its cache now. Raises EngineDead before the core is built."""
        return self._get_core().memory

    @contextmanager
    def hold(self, request_id: str, on_abort: Callable[[], None]) -> Iterator[None]:
        """For work that consists of successive requests: between them, the engine doesn't count as idle.

        An abort of `request_id` calls `on_abort`. Raises EngineAsleep and EngineDead like `stream`.
        """
        self._get_core()
        self.sleep_controller.check_awake()
        self._holds[request_id] = on_abort
        self._idle.clear()
        try:
            yield
        finally:
            del self._holds[request_id]
            self._note_idle()

    def stream(self, request: EngineRequest, *, is_held: bool = False) -> TokenStream:
        """Start a request at once. `is_held`: it is part of held work, which a sleep waits for.

        Raises InvalidRequest if it can never run, EngineAsleep if nothing can run now, EngineDead if nothing
        can run any more.
        """
        core = self._get_core()
        if not is_held:
            self.sleep_controller.check_awake()
        core.check(request)
        if request.request_id in self._streams:
            raise InvalidRequest(f"The request id {request.request_id!r} is in use.", param="request_id")
        stream = self._streams[request.request_id] = TokenStream(request.request_id, self.abort)
        self._idle.clear()
        self._commands.put(request)
        return stream

    def abort(self, request_id: str) -> None:
        """End a request at the next step; a stream still read gets a last delta. Unknown ids are ignored."""
        if request_id in self._streams:
            self._commands.put(request_id)
        elif request_id in self._holds:
            self._holds[request_id]()

    def _abort_all(self) -> None:
        for request_id in self.request_ids:
            self.abort(request_id)

    def _note_idle(self) -> None:
        if not self._streams and not self._holds:
            self._idle.set()

    async def reset_prefix_cache(self) -> None:
        """Forget the cached keys and values of prompts; running requests continue. Raises EngineDead."""
        await self._call(lambda core: core.reset_prefix_cache())

    async def wait_ended(self) -> None:
        """Wait until the engine's thread has ended; raises EngineDead unless `shutdown` ended it."""
        await asyncio.shield(self._ended)
        if self._failure is not None:
            raise EngineDead(self._failure)

    async def shutdown(self, timeout_s: float) -> bool:
        """Abort open requests, then end the thread. False if its step takes longer than `timeout_s`.

        Streams then raise EngineDead; the thread is a daemon and doesn't keep the process alive.
        """
        self._is_stopping = True
        if self._thread is None:
            return True
        for request_id in self._streams:
            self._commands.put(request_id)
        self._commands.put(None)
        done, _ = await asyncio.wait([self._ended], timeout=timeout_s)
        self._end_streams(f"The engine was shut down, and its last step took longer than {timeout_s} s.")
        if done:
            self._thread.join()  # reporting its end was its last act
        return bool(done)

    async def _call(self, function: Callable[[EngineCore], None]) -> None:
        """Have the thread call `function` between steps; raises what that raises, and EngineDead."""
        self._get_core()
        await self._calls.run(function)

    def _get_core(self) -> EngineCore:
        if self._core is None or not self.is_alive:
            why = "is shutting down" if self._is_stopping else "has not been started"
            raise EngineDead(self._failure or f"The engine {why}.")
        return self._core

    # Called on the loop, by the thread

    def _on_built(self, core: EngineCore) -> None:
        if not self._built.done():
            self._built.set_result(core)

    def _on_deltas(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None:
                stream.put(delta)
                if delta.finish_reason is not None:
                    del self._streams[delta.request_id]
        self._note_idle()

    def _on_ended(self, error: BaseException | None) -> None:
        if error is not None and not self._built.done():
            self._built.set_exception(error)
        if error is not None:
            self._failure = f"The engine has ended: {type(error).__name__}: {error}"
        self._end_streams(self._failure or "The engine has ended.")
        self._ended.set_result(None)

    def _end_streams(self, failure: str) -> None:
        for stream in self._streams.values():
            stream.end(failure)
        self._streams.clear()
        self._idle.set()
        self._calls.end(EngineDead(failure))

    # The thread's side

    def _run_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread's root: reports its end to the loop, whatever the cause."""
        end: BaseException | None = None
        try:
            core = self._build_core()
            loop.call_soon_threadsafe(self._on_built, core)
            _run_steps(
                core, self._commands, lambda deltas: loop.call_soon_threadsafe(self._on_deltas, deltas)
            )
        except BaseException as error:
            log.exception("The engine's thread ends.")
            end = error
        with suppress(RuntimeError):  # the loop is closed: nothing waits for the end
            loop.call_soon_threadsafe(self._on_ended, end)


def _run_steps(
    core: EngineCore, commands: SimpleQueue[_Command], deliver: Callable[[list[TokenDelta]], object]
) -> None:
    """Until a stop command: obey all commands, run one step, deliver. Blocks while idle."""
    while True:
        deltas: list[TokenDelta] = []
        for command in _pending_commands(core, commands):
            if command is None:
                deliver(deltas)
                return
            if isinstance(command, EngineRequest):
                core.add(command)
            elif isinstance(command, ThreadCall):
                command.run(core)
            elif delta := core.abort(command):
                deltas.append(delta)
        if core.has_work:
            deltas += core.step()
        if deltas:
            deliver(deltas)


def _pending_commands(core: EngineCore, commands: SimpleQueue[_Command]) -> Iterator[_Command]:
    """All queued commands; if the core is idle, waits for the first."""
    if not core.has_work:
        if log.isEnabledFor(logging.DEBUG):
            core.check_integrity()
        yield commands.get()
    with suppress(Empty):
        while True:
            yield commands.get_nowait()
