"""Starts and wakes replicas of requested models, after freeing memory by the policy in eviction.py.

One task plans and evicts; victims that must finish requests first are evicted beside it. Replicas then start
and wake side by side, but only one at a time on each device: two engines that measure a device's free memory
at once would both count on the same bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from instance_manager.broadcast.broadcast import Broadcast
from instance_manager.errors import (
    InstanceNotFound,
    ManagerError,
    ModelNotFound,
    NoCapacity,
    WrongState,
)
from instance_manager.fleet.making_room import MakingRoom
from instance_manager.fleet.memory_planner import MemoryPlanner
from instance_manager.fleet.models import Model
from instance_manager.fleet.next_replica import NextReplica
from instance_manager.lifecycle.failures import start_error
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.memory.devices import Device
from instance_manager.memory.eviction import Evict, Fits, NeverFits, Wait
from instance_manager.memory.start_order import WaitingModel, next_to_start
from instance_manager.types import InstanceSpec, InstanceState

logger = logging.getLogger("berth.fleet")

_RETRY_S = 1.0  # for changes that nothing reports, such as another program's memory
_WHAT_RUNS = "what runs"  # for which room is made if engines have outgrown their budgets
_PLANS_PER_TURN = 3  # while victims come into use between plan and eviction


class Scaler:
    """`models`, by name, are the model registry's; only it adds and removes them."""

    def __init__(
        self,
        manager: InstanceManager,
        planner: MemoryPlanner,
        replicas: NextReplica,
        models: Mapping[str, Model],
        news: Broadcast,
        clock: Callable[[], float],
    ) -> None:
        self._manager = manager
        self._planner = planner
        self._replicas = replicas
        self._models = models
        self._news = news
        self._clock = clock
        self._starting: dict[asyncio.Task[None], frozenset[Device]] = {}  # with the devices it fills
        self._making_room: dict[asyncio.Task[bool], MakingRoom] = {}  # where victims drain
        self._measure_due = False
        self._num_abandoned = 0  # evictions in a row

    def measure(self) -> None:
        """Check soon whether engines hold more memory than their budgets."""
        self._measure_due = True
        self._news.notify_all()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                count = self._news.count
                try:
                    look_again_s = await self._start_next()
                except Exception:  # the task's root: a fault in one model's start must not block all others
                    logger.exception("the scaler failed; it continues")
                    look_again_s = _RETRY_S
                if look_again_s != 0 and self._news.count == count:
                    await self._news.wait_for_change(look_again_s)
        finally:
            tasks = (*self._starting, *self._making_room)
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_next(self) -> float | None:
        """Start or wake the first model that fits; seconds until the next try, None = at the next change."""
        if self._measure_due:
            self._measure_due = False
            if not self._is_making_room_for(_WHAT_RUNS) and (steps := await self._planner.plan_reclaim()):
                await self._make_room(MakingRoom(_WHAT_RUNS, {}, steps))
        retries = self._request_restarts()
        waiting = {model.name: model for model in self._models.values() if self._is_wanted(model)}
        while waiting:
            now = self._clock()
            order = [
                WaitingModel(m.name, m.queue.since or now, m.queue.priority, len(m.queue))
                for m in waiting.values()
            ]
            name = next_to_start(order)
            if name is None:
                break
            delay_s = await self._try_start(waiting.pop(name), now)
            if delay_s == 0:
                return 0
            if delay_s is not None:
                retries.append(delay_s)
        return min(retries, default=None)

    def _request_restarts(self) -> list[float]:
        """Request the start of models whose restart is due; seconds until each of the others is."""
        later: list[float] = []
        for model in self._models.values():
            if (at := model.backoff.restart_at) is None:
                continue
            if (wait_s := at - self._clock()) > 0:
                later.append(wait_s)
                continue
            model.backoff.restart_at = None
            if len(model.live) < model.max_replicas:  # else another has taken its place
                logger.info("model=%s is restarted after a failure", model.name)
                model.start_requested = True
        return later

    async def _try_start(self, model: Model, now: float) -> float | None:
        """Seconds until the next try: 0 = something was done, None = at the next change."""
        need = self._replicas.need_of(model)
        sleeping = self._replicas.instance_to_wake(model, need)
        spec = self._replicas.spec_of_next(model, need)
        if sleeping is None and spec is None:
            if not self._replicas.may_come_back(model, need):
                self._reject_gone(model)
            return None
        try:
            under_way = tuple(self._making_room.values())
            placement = await self._planner.plan(model, spec, sleeping, model.queue.since or now, under_way)
        except ManagerError as error:
            self._fail(model, error)
            return 0
        if not self._is_wanted(model):  # it was stopped, or its requests have left, during the plan
            return 0
        if any(placement.fills & busy for busy in self._starting.values()):
            return None
        match placement.plan:
            case Fits():
                if spec is not None and placement.devices is not None:
                    spec = replace(spec, devices=placement.devices)
                model.is_loading, model.start_requested = True, False
                model.loading_runner = self._replicas.runner_of(sleeping, spec)
                task = asyncio.create_task(self._bring_up(model, sleeping, spec), name=f"start {model.name}")
                self._starting[task] = placement.fills
                task.add_done_callback(self._on_start_done)
            case NeverFits(message):
                self._fail(model, NoCapacity(message, retry_after_s=10.0))
            case Wait(until, reason):
                logger.info("model=%s waits: %s", model.name, reason)
                return _RETRY_S if until is None else max(0.01, until - now)
            case Evict(steps):
                return await self._make_room(MakingRoom(model.name, placement.need, steps))
        return 0

    async def _make_room(self, room: MakingRoom) -> float | None:
        """As `_try_start`. Requests that a victim must finish first don't hold up other models."""
        if any(step.must_drain for step in room.steps):
            if not self._is_making_room_for(room.model_name):
                evicting = self._planner.execute(room.steps, for_model=room.model_name)
                task = asyncio.create_task(evicting, name=f"room for {room.model_name}")
                self._making_room[task] = room
                task.add_done_callback(self._on_room_made)
            return None
        if await self._planner.execute(room.steps, for_model=room.model_name):
            self._num_abandoned = 0
            return 0
        self._num_abandoned += 1  # plan again, but not for ever: other models want their turn
        return 0 if self._num_abandoned % _PLANS_PER_TURN else _RETRY_S

    def _is_making_room_for(self, model_name: str) -> bool:
        return any(room.model_name == model_name for room in self._making_room.values())

    async def _bring_up(self, model: Model, sleeping: Instance | None, spec: InstanceSpec | None) -> None:
        """Wake the sleeping instance or start a replica, and wait until it runs or fails."""
        try:
            if sleeping is not None:
                try:
                    instance = await self._manager.wake(sleeping.instance_id)
                except (WrongState, InstanceNotFound):  # it was stopped meanwhile
                    model.start_requested = True
                    return
            else:
                instance = self._replicas.start(model, spec)
                while instance.state.is_pending:
                    await instance.wait_for_change()
        except ManagerError as error:
            model.is_loading = False
            if isinstance(error, NoCapacity) and not self._manager.has_free_slot:
                model.start_requested = True  # another start took the slot: wait for the next one
                return
            self._fail(model, error)
            return
        finally:
            model.is_loading = False
        if instance.gate.is_open:
            model.record_start()
            model.grant()
            self._measure_due = True
        elif instance.failure is not None:
            self._fail(model, start_error(f"model {model.name!r}", instance.failure, instance.instance_id))

    def _on_start_done(self, task: asyncio.Task[None]) -> None:
        del self._starting[task]
        self._report(task)

    def _on_room_made(self, task: asyncio.Task[bool]) -> None:
        del self._making_room[task]
        self._report(task)

    def _report(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed unexpectedly", task.get_name(), exc_info=error)
        self._news.notify_all()

    def _reject_gone(self, model: Model) -> None:
        """The model left the catalog, or was deleted, while requests waited for it."""
        logger.info("model=%s is gone; %d requests waited for it", model.name, len(model.queue))
        model.start_requested = False
        message = f"model {model.name!r} no longer exists: it left the catalog or was deleted"
        model.queue.reject(
            lambda: ModelNotFound(message, param="model"), lambda need: not model.is_awake_for(need)
        )

    def _fail(self, model: Model, error: ManagerError) -> None:
        logger.warning("model=%s could not be started: %s", model.name, error)
        model.start_requested = False
        model.record_failure(error)
        # If this was an additional replica, the waiting requests are served by the existing ones.
        message, kind = str(error), type(error)
        retry_after_s = None if error.is_lasting else model.backoff.wait_s
        model.queue.reject(
            lambda: kind(message, retry_after_s=retry_after_s, public=error.public),
            lambda need: not model.is_awake_for(need),
        )
        self._news.notify_all()

    def _is_wanted(self, model: Model) -> bool:
        """Whether a replica should be started or woken now."""
        if model.is_loading or model.num_stops or _is_full(model):
            return False
        if model.error is not None and model.backoff.wait_s > 0:
            return False
        if model.start_requested and not model.is_starting:
            return True
        return any(not model.is_up_for(need) for need in model.queue.needs)


def _is_full(model: Model) -> bool:
    """Whether a stopping replica has to be gone before another may start."""
    stopping = [one for one in model.live if one.state is InstanceState.STOPPING]
    limit = max(model.profile.max_replicas, 1) if model.profile is not None else len(model.live) + 1
    return bool(stopping) and len(model.live) >= limit
