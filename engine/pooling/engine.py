"""Between the server's event loop and the thread that pools.

One thread builds the core and runs batches; one loop serves HTTP. They meet in two places only: a queue of
commands, emptied before every batch, and one `call_soon_threadsafe` per batch that delivers its results. New
requests join the next batch, whichever client sent them.

Knows nothing of torch (`build_core` brings it in) nor of text.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol, TypeAlias

from engine.core.sleep import MemoryUsage
from engine.core.sleep_controller import SleepController
from engine.core.thread_calls import ThreadCall, ThreadCalls
from engine.core.types import EngineStats
from engine.errors import DeviceLost, EngineDead, InvalidRequest, RequestFailed
from engine.pooling.batcher import Batcher
from engine.pooling.plan import PoolingPlan
from engine.pooling.types import Pooled, PoolingRequest, PoolingRunner

log = logging.getLogger(__name__)

# The loop's commands to the thread: run these, drop those with these ids, call this, or (None) stop.
_Command: TypeAlias = Sequence[PoolingRequest] | frozenset[str] | ThreadCall[PoolingRunner] | None


class Core(Protocol):
    """A loaded model and its waiting requests; only the thread uses it, except for `len(batcher)`."""

    @property
    def runner(self) -> PoolingRunner: ...

    @property
    def batcher(self) -> Batcher: ...


class PoolingEngine:
    """The engine as the server sees it; every method belongs to the loop that has called `start`."""

    def __init__(self, build_core: Callable[[], Core], plan: PoolingPlan) -> None:
        """`build_core` runs in the engine's thread: it may be slow, and import torch."""
        self.plan = plan
        self._build_core = build_core
        self._commands: SimpleQueue[_Command] = SimpleQueue()
        self._results: dict[str, asyncio.Future[array[float]]] = {}  # by request id
        self._idle = asyncio.Event()  # set while no results are pending
        self._idle.set()
        self._calls: ThreadCalls[PoolingRunner] = ThreadCalls(self._commands.put)
        self.sleep_controller = SleepController(self._call, idle=self._idle, abort_all=self._abort_all)
        self._core: Core | None = None
        self._num_prompt_tokens = 0
        self._is_stopping = False
        self._failure: str | None = None

    def __repr__(self) -> str:
        state = "alive" if self.is_alive else "not alive"
        return f"<PoolingEngine {state}, {self.num_unfinished} requests>"

    # For the server

    async def start(self) -> None:
        """Build the core; raises what building it raises. If cancelled, the thread ends once it is built."""
        loop = asyncio.get_running_loop()
        self._built: asyncio.Future[Core] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        Thread(target=self._run_thread, args=(loop,), name="engine", daemon=True).start()
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
    def max_model_len(self) -> int:
        """Tokens of one input."""
        return self.plan.max_model_len

    @property
    def num_unfinished(self) -> int:
        """Requests whose results are pending."""
        return len(self._results)

    @property
    def request_ids(self) -> list[str]:
        return list(self._results)

    def stats(self) -> EngineStats:
        if self._core is None:
            return EngineStats()
        num_waiting = min(len(self._core.batcher), self.num_unfinished)
        return EngineStats(
            num_requests_running=self.num_unfinished - num_waiting,
            num_requests_waiting=num_waiting,
            prompt_tokens=self._num_prompt_tokens,
            sleep_level=self.sleep_controller.state.level,
        )

    @property
    def memory(self) -> MemoryUsage:
        """Memory used by the model now. Raises EngineDead before it is built."""
        return self._get_core().runner.memory

    async def pool(self, requests: Sequence[PoolingRequest]) -> list[array[float]]:
        """The values of each request, in order. If cancelled, requests that have not started are dropped.

        Raises InvalidRequest for an input that is empty or too long, RequestFailed if the model fails on one,
        EngineAsleep, EngineDead if the engine ends first.
        """
        self._check(requests)
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[array[float]]] = {
            request.request_id: loop.create_future() for request in requests
        }
        self._results |= futures
        self._idle.clear()
        self._commands.put(requests)
        try:
            return await asyncio.gather(*futures.values())
        finally:
            if left := frozenset(name for name in futures if name in self._results):
                self._forget(left)

    def abort(self, request_id: str) -> None:
        """Abort a request, which then raises RequestFailed. Unknown ids are ignored."""
        future = self._results.get(request_id)
        if future is not None and not future.done():
            future.set_exception(RequestFailed("This request was aborted."))
            self._forget(frozenset({request_id}))

    async def wait_ended(self) -> None:
        """Wait until the engine's thread has ended; raises EngineDead unless `shutdown` ended it."""
        await asyncio.shield(self._ended)
        if self._failure is not None:
            raise EngineDead(self._failure)

    async def shutdown(self, timeout_s: float) -> bool:
        """Drop open requests, then end the thread. False if its batch takes longer than `timeout_s`.

        Open requests raise EngineDead; the thread is a daemon and doesn't keep the process alive.
        """
        self._is_stopping = True
        self._commands.put(None)
        self._end_results("The engine is shutting down.")
        done, _ = await asyncio.wait([self._ended], timeout=timeout_s)
        return bool(done)

    def _abort_all(self) -> None:
        for request_id in self.request_ids:
            self.abort(request_id)

    async def _call(self, function: Callable[[PoolingRunner], None]) -> None:
        """Have the thread call `function` between batches; raises what that raises, and EngineDead."""
        self._get_core()
        await self._calls.run(function)

    def _get_core(self) -> Core:
        if self._core is None or not self.is_alive:
            raise EngineDead(self._failure or "The engine accepts no requests.")
        return self._core

    def _check(self, requests: Sequence[PoolingRequest]) -> None:
        self._get_core()
        self.sleep_controller.check_awake()
        for request in requests:
            if request.request_id in self._results:
                raise InvalidRequest(f"The request id {request.request_id!r} is in use.", param="request_id")
            if not 1 <= len(request.token_ids) <= self.max_model_len:
                raise InvalidRequest(
                    f"An input has {len(request.token_ids)} tokens; 1 to {self.max_model_len} are allowed."
                )

    def _forget(self, request_ids: frozenset[str]) -> None:
        for request_id in request_ids:
            self._results.pop(request_id).cancel()
        self._commands.put(request_ids)
        self._update_idle()

    def _update_idle(self) -> None:
        if not self._results:
            self._idle.set()

    # Called on the loop, by the thread

    def _on_built(self, core: Core) -> None:
        if not self._built.done():
            self._built.set_result(core)

    def _on_results(self, results: Sequence[Pooled], num_tokens: int) -> None:
        self._num_prompt_tokens += num_tokens
        for result in results:
            future = self._results.pop(result.request_id, None)
            if future is None or future.done():
                continue
            if result.values is not None:
                future.set_result(result.values)
            else:
                future.set_exception(RequestFailed(result.error or "The model failed on this input."))
        self._update_idle()

    def _on_ended(self, error: BaseException | None) -> None:
        if error is not None and not self._built.done():
            self._built.set_exception(error)
        if error is not None:
            self._failure = f"The engine has ended: {type(error).__name__}: {error}"
        self._end_results(self._failure or "The engine has ended.")
        self._ended.set_result(None)

    def _end_results(self, reason: str) -> None:
        for future in self._results.values():
            if not future.done():
                future.set_exception(EngineDead(reason))
        self._results.clear()
        self._update_idle()
        self._calls.end(EngineDead(reason))

    # The thread's side

    def _run_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread's root: reports its end to the loop, whatever the cause."""
        end: BaseException | None = None
        try:
            core = self._build_core()
            loop.call_soon_threadsafe(self._on_built, core)
            _run_batches(
                core,
                self._commands,
                lambda results, num_tokens: loop.call_soon_threadsafe(self._on_results, results, num_tokens),
            )
        except BaseException as error:
            log.exception("The engine's thread ends.")
            end = error
        with suppress(RuntimeError):  # the loop is closed: nothing waits for the end
            loop.call_soon_threadsafe(self._on_ended, end)


def _run_batches(
    core: Core, commands: SimpleQueue[_Command], deliver: Callable[[Sequence[Pooled], int], object]
) -> None:
    """Until a stop command: obey all commands, run one batch, deliver. Blocks while idle."""
    while True:
        for command in _pending_commands(core.batcher, commands):
            if command is None:
                return
            if isinstance(command, ThreadCall):
                command.run(core.runner)
            elif isinstance(command, frozenset):
                for request_id in command:
                    core.batcher.abort(request_id)
            else:
                for request in command:
                    core.batcher.add(request)
        if batch := core.batcher.next_batch():
            deliver(_run(core.runner, batch), sum(len(request.token_ids) for request in batch))


def _pending_commands(batcher: Batcher, commands: SimpleQueue[_Command]) -> Iterator[_Command]:
    """All queued commands; if no request waits for a batch, waits for the first."""
    if not len(batcher):
        yield commands.get()
    with suppress(Empty):
        while True:
            yield commands.get_nowait()


def _run(runner: PoolingRunner, batch: Sequence[PoolingRequest]) -> list[Pooled]:
    """If a batch fails, its requests run again one by one, so that only the faulty input fails."""
    try:
        values = runner.run(batch)
        return [Pooled(request_id=r.request_id, values=v) for r, v in zip(batch, values, strict=True)]
    except DeviceLost:
        raise
    except Exception as error:  # any error must reach the clients of this batch
        if len(batch) > 1:
            log.warning("A batch of %d inputs failed (%s); running them one by one.", len(batch), error)
            return [result for request in batch for result in _run(runner, [request])]
        log.exception("An input of %d tokens failed.", len(batch[0].token_ids))
        reason = f"This request failed in the engine: {type(error).__name__}: {error}"
        return [Pooled(request_id=batch[0].request_id, error=reason)]
