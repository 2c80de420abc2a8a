"""The engine that pools, in its thread. New requests join the next batch, whichever client sent them."""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

from engine.core.engine_thread import EngineThread
from engine.core.sleep import MemoryUsage
from engine.core.types import EngineStats
from engine.errors import DeviceLost, EngineDead, InvalidRequest, RequestFailed
from engine.pooling.batcher import Batcher
from engine.pooling.plan import PoolingPlan
from engine.pooling.types import Pooled, PoolingRequest, PoolingRunner

log = logging.getLogger(__name__)

# Run these requests, drop those with these ids.
_Command: TypeAlias = Sequence[PoolingRequest] | frozenset[str]


class Core(Protocol):
    """A loaded model and its waiting requests; only the thread uses it, except for `len(batcher)`."""

    @property
    def runner(self) -> PoolingRunner: ...

    @property
    def batcher(self) -> Batcher: ...


class PoolingEngine(EngineThread[Core, _Command, Pooled]):
    """The engine as the server sees it; every method belongs to the loop that has called `start`."""

    def __init__(self, build_core: Callable[[], Core], plan: PoolingPlan) -> None:
        """`build_core` runs in the engine's thread: it may be slow, and import torch."""
        super().__init__(build_core)
        self.plan = plan
        self._results: dict[str, asyncio.Future[array[float]]] = {}  # by request id
        self._num_prompt_tokens = 0

    def __repr__(self) -> str:
        state = "alive" if self.is_alive else "not alive"
        return f"<PoolingEngine {state}, {self.num_unfinished} requests>"

    # For the server

    @property
    def max_model_len(self) -> int:
        """Tokens of one input."""
        return self.plan.max_model_len

    @property
    def num_unfinished(self) -> int:
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

    def _on_outputs(self, outputs: list[Pooled]) -> None:
        for result in outputs:
            self._num_prompt_tokens += result.num_tokens
            future = self._results.pop(result.request_id, None)
            if future is None or future.done():
                continue
            if result.values is not None:
                future.set_result(result.values)
            else:
                future.set_exception(RequestFailed(result.error or "The model failed on this input."))
        self._update_idle()

    def _stop_requests(self) -> None:
        self._end_requests("The engine is shutting down.")

    def _end_requests(self, failure: str) -> None:
        for future in self._results.values():
            if not future.done():
                future.set_exception(EngineDead(failure))
        self._results.clear()

    # The thread's side

    def _sleeper(self, core: Core) -> PoolingRunner:
        return core.runner

    def _has_work(self, core: Core) -> bool:
        return len(core.batcher) > 0

    def _obey(self, core: Core, command: _Command) -> Iterable[Pooled]:
        if isinstance(command, frozenset):
            for request_id in command:
                core.batcher.abort(request_id)
        else:
            for request in command:
                core.batcher.add(request)
        return ()

    def _step(self, core: Core) -> Iterable[Pooled]:
        return _run(core.runner, core.batcher.next_batch())


def _run(runner: PoolingRunner, batch: Sequence[PoolingRequest]) -> list[Pooled]:
    """If a batch fails, its requests run again one by one, so that only the faulty input fails."""
    try:
        values = runner.run(batch)
        return [
            Pooled(request_id=r.request_id, num_tokens=len(r.token_ids), values=v)
            for r, v in zip(batch, values, strict=True)
        ]
    except DeviceLost:
        raise
    except Exception as error:  # any error must reach the clients of this batch
        if len(batch) > 1:
            log.warning("A batch of %d inputs failed (%s); running them one by one.", len(batch), error)
            return [result for request in batch for result in _run(runner, [request])]
        log.exception("An input of %d tokens failed.", len(batch[0].token_ids))
        reason = f"This request failed in the engine: {type(error).__name__}: {error}"
        num_tokens = len(batch[0].token_ids)
        return [Pooled(request_id=batch[0].request_id, num_tokens=num_tokens, error=reason)]
