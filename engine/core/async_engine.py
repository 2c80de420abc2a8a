"""The engine that generates, in its thread.

Every early end of a request (the client left, a stop string, a shutdown) is the same abort command.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from engine.core.adapter import Adapter
from engine.core.engine_core import EngineCore
from engine.core.engine_thread import EngineThread
from engine.core.sleep import MemoryUsage
from engine.core.token_stream import TokenStream
from engine.core.types import EngineRequest, EngineStats, TokenDelta
from engine.errors import InvalidRequest

__all__ = ["AsyncEngine", "TokenStream"]

log = logging.getLogger(__name__)


_Command: TypeAlias = EngineRequest | str  # run this request, abort the one with this id
_NOBODY = ""  # the id of no request: aborting it only ends the thread's wait for commands


class AsyncEngine(EngineThread[EngineCore, _Command, TokenDelta]):
    """The engine as the server sees it; every method belongs to the loop that has called `start`.

    A request's id is in use until the engine has released the request, at the end of the step that runs when
    its reader leaves.
    """

    def __init__(self, build_core: Callable[[], EngineCore]) -> None:
        """`build_core` runs in the engine's thread: it may be slow, and import torch."""
        super().__init__(build_core)
        self._streams: dict[str, TokenStream] = {}
        self._holds: dict[str, Callable[[], None]] = {}  # by request id: what an abort calls

    def __repr__(self) -> str:
        state = "alive" if self.is_alive else "not alive"
        return f"<AsyncEngine {state}, {len(self._streams)} streams, {self._core!r}>"

    # For the server

    @property
    def num_unfinished(self) -> int:
        return len(self._streams)

    @property
    def request_ids(self) -> list[str]:
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

    def _note_idle(self) -> None:
        if not self._streams and not self._holds:
            self._idle.set()

    async def read_adapter(self, name: str, directory: Path) -> Adapter:
        """A LoRA adapter for requests. Raises CheckpointError, ConfigError and EngineDead."""
        return await asyncio.to_thread(self._get_core().read_adapter, name, directory)

    async def reset_prefix_cache(self) -> None:
        """Forget the cached keys and values of prompts; running requests continue. Raises EngineDead."""
        await self._call("reset_prefix_cache")

    def _on_outputs(self, outputs: list[TokenDelta]) -> None:
        for delta in outputs:
            stream = self._streams.get(delta.request_id)
            if stream is not None:
                stream.put(delta)
                if delta.finish_reason is not None:
                    del self._streams[delta.request_id]
        self._note_idle()

    def _stop_requests(self) -> None:
        for request_id in self._streams:
            self._commands.put(request_id)

    def _end_requests(self, failure: str) -> None:
        for stream in self._streams.values():
            stream.end(failure)
        self._streams.clear()

    # The thread's side

    def _sleeper(self, core: EngineCore) -> EngineCore:
        return core

    def _has_work(self, core: EngineCore) -> bool:
        return core.has_work

    def _obey(self, core: EngineCore, command: _Command) -> Iterable[TokenDelta]:
        if isinstance(command, EngineRequest):
            core.add(command)
            return ()
        delta = core.abort(command)
        return () if delta is None else (delta,)

    def _step(self, core: EngineCore) -> Iterable[TokenDelta]:
        return core.step()

    def _on_core(self, core: EngineCore) -> None:
        commands = self._commands  # not this object, which has the core: whoever watches would keep it alive
        core.watch_device(lambda: commands.put(_NOBODY))

    def _check_idle(self, core: EngineCore) -> None:
        core.check_device()
        if log.isEnabledFor(logging.DEBUG):
            core.check_integrity()
