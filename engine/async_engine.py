"""Between the server's event loop and the engine's thread.

One thread builds the core and runs its steps; one loop serves HTTP. They meet in two places only: a queue of
commands, emptied once per step, and one `call_soon_threadsafe` per step that delivers all its outputs. Every
early end of a request – the client left, a stop string, a shutdown – is the same abort command.

Knows nothing of torch (it comes in through `build_core`) nor of text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self, TypeAlias

from engine.core import EngineCore
from engine.errors import EngineDead, InvalidRequest
from engine.types import EngineRequest, EngineStats, TokenDelta

log = logging.getLogger(__name__)


# What the loop tells the thread: run this request, abort the one of this id, or (None) stop.
_Command: TypeAlias = EngineRequest | str | None


class TokenStream:
    """What one request generates. Leaving it before its end aborts the request, so use it as a context:

        async with engine.stream(request) as stream:
            async for delta in stream: ...

    Deltas that pile up while nobody reads are merged into one. For one reader at a time. Iteration raises
    EngineDead if the engine ends before the request does.
    """

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._abort = abort
        self._ready = asyncio.Event()  # there is something to read, or there won't be any more
        self._unread: TokenDelta | None = None
        self._unread_tokens: list[int] = []
        self._is_ended = False
        self._failure: str | None = None

    def __repr__(self) -> str:
        state = "ended" if self._is_ended else "open"
        return f"<TokenStream {self.request_id} {state}, {len(self._unread_tokens)} tokens unread>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        await self._ready.wait()
        if self._unread is not None:
            return self._take(self._unread)
        if self._failure is not None:
            raise EngineDead(self._failure)
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave; what is unread is dropped. Never waits, so that a cancelled task can leave too."""
        if not self._is_ended:
            self._abort(self.request_id)
        self._unread = None
        self.end()

    def put(self, delta: TokenDelta) -> None:
        """Called by the engine, on the loop. Nothing comes through once the reader has left."""
        if self._is_ended:
            return
        if self._unread is not None and delta.timings is None:
            delta = replace(delta, timings=self._unread.timings)
        self._unread = delta
        self._unread_tokens += delta.token_ids
        self._is_ended = delta.finish_reason is not None
        self._ready.set()

    def end(self, failure: str | None = None) -> None:
        """Called by the engine, on the loop: no more deltas will come; `failure` says why, if it is one."""
        if not self._is_ended:
            self._failure = failure
        self._is_ended = True
        self._ready.set()

    def _take(self, delta: TokenDelta) -> TokenDelta:
        if len(self._unread_tokens) != len(delta.token_ids):
            delta = replace(delta, token_ids=tuple(self._unread_tokens))
        self._unread = None
        self._unread_tokens.clear()
        if not self._is_ended:
            self._ready.clear()
        return delta


class AsyncEngine:
    """The engine as the server sees it; every method belongs to the loop that has called `start`.

    A request's id is in use until the engine has let go of the request, at the end of the step that runs when
    its reader leaves.
    """

    def __init__(self, build_core: Callable[[], EngineCore]) -> None:
        """`build_core` runs in the engine's thread: it may take its time, and import torch."""
        self._build_core = build_core
        self._commands: SimpleQueue[_Command] = SimpleQueue()
        self._streams: dict[str, TokenStream] = {}
        self._core: EngineCore | None = None
        self._thread: Thread | None = None
        self._is_stopping = False
        self._failure: str | None = None

    def __repr__(self) -> str:
        state = "alive" if self.is_alive else "not alive"
        return f"<AsyncEngine {state}, {len(self._streams)} streams, {self._core!r}>"

    # For the server

    async def start(self) -> None:
        """Build the core; raises what building it raises. If cancelled, the thread ends once that is done."""
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
        """Whether requests are taken."""
        return self._core is not None and not self._is_stopping and self._failure is None

    @property
    def num_unfinished(self) -> int:
        """Requests that the engine hasn't let go of."""
        return len(self._streams)

    @property
    def request_ids(self) -> list[str]:
        """Of those requests."""
        return list(self._streams)

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together. Raises EngineDead before the core is built."""
        return self._get_core().max_model_len

    def stats(self) -> EngineStats:
        return EngineStats() if self._core is None else self._core.stats()

    def stream(self, request: EngineRequest) -> TokenStream:
        """Start a request at once. Raises InvalidRequest if it can't run, EngineDead if nothing can."""
        core = self._get_core()
        core.check(request)
        if request.request_id in self._streams:
            raise InvalidRequest(f"The request id {request.request_id!r} is in use.", param="request_id")
        stream = self._streams[request.request_id] = TokenStream(request.request_id, self.abort)
        self._commands.put(request)
        return stream

    def abort(self, request_id: str) -> None:
        """End a request at the next step; a stream still read gets a last delta. Unknown ids are ignored."""
        if request_id in self._streams:
            self._commands.put(request_id)

    async def wait_ended(self) -> None:
        """Wait until the engine's thread has ended; raises EngineDead if that was not by `shutdown`."""
        await asyncio.shield(self._ended)
        if self._failure is not None:
            raise EngineDead(self._failure)

    async def shutdown(self, timeout_s: float) -> bool:
        """Abort what is open, then end the thread. False if its step takes longer than `timeout_s`.

        Streams then raise EngineDead; the thread is a daemon and doesn't keep the process.
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
            self._thread.join()  # telling of its end was its last act
        return bool(done)

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

    # The thread's side

    def _run_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread's root: whatever ends it, the loop is told."""
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
        with suppress(RuntimeError):  # the loop is closed: there is nobody to tell
            loop.call_soon_threadsafe(self._on_ended, end)


def _run_steps(
    core: EngineCore, commands: SimpleQueue[_Command], deliver: Callable[[list[TokenDelta]], object]
) -> None:
    """Until told to stop: obey all commands, run one step, deliver. Sleeps while there is nothing to do."""
    while True:
        deltas: list[TokenDelta] = []
        for command in _take(core, commands):
            if command is None:
                deliver(deltas)
                return
            if isinstance(command, EngineRequest):
                core.add(command)
            elif delta := core.abort(command):
                deltas.append(delta)
        if core.has_work:
            deltas += core.step()
        if deltas:
            deliver(deltas)


def _take(core: EngineCore, commands: SimpleQueue[_Command]) -> Iterator[_Command]:
    """All commands there are; if the core is idle, wait for the first."""
    if not core.has_work:
        if log.isEnabledFor(logging.DEBUG):
            core.check_integrity()
        yield commands.get()
    with suppress(Empty):
        while True:
            yield commands.get_nowait()
