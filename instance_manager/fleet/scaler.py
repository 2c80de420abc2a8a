"""Brings models up: starts and wakes what is wanted, after it has made room by the policy in eviction.py.

One task plans and makes room. What it then starts or wakes comes up by itself, but on each device one thing
at a time: two engines that measure a device's memory at once would both take the same for free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from instance_manager.backends import plan_launch
from instance_manager.backends.runner_kind import RunnerKind, can_serve
from instance_manager.broadcast.news import News
from instance_manager.errors import (
    InstanceNotFound,
    InstanceNotRunning,
    ManagerError,
    ModelNotFound,
    NoCapacity,
    WrongState,
)
from instance_manager.fleet.memory_planner import MemoryPlanner
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.lifecycle.failures import start_error
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.memory.eviction import Device, Fits, NeverFits, Wait, WaitingModel, next_to_start
from instance_manager.types import InstanceSpec, InstanceState

logger = logging.getLogger("berth.fleet")

_LOOK_AGAIN_S = 1.0  # where nothing tells of a change, such as another program's memory


class Scaler:
    """`models` by name are the fleet's, which alone adds and takes away."""

    def __init__(
        self,
        manager: InstanceManager,
        room: MemoryPlanner,
        models: Mapping[str, Model],
        news: News,
        clock: Callable[[], float],
    ) -> None:
        self._manager = manager
        self._room = room
        self._models = models
        self._news = news
        self._clock = clock
        self._coming: dict[asyncio.Task[None], frozenset[Device]] = {}  # the devices that each fills
        self._measure_due = False

    def measure(self) -> None:
        """Look soon whether engines hold more than they may together."""
        self._measure_due = True
        self._news.tell()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                count = self._news.count
                try:
                    look_again_s = await self._start_next()
                except Exception:  # the task's root: one model's trouble must not keep all from starting
                    logger.exception("the starter failed; it goes on")
                    look_again_s = _LOOK_AGAIN_S
                if look_again_s != 0 and self._news.count == count:
                    await self._news.wait(look_again_s)
        finally:
            for task in self._coming:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*self._coming, return_exceptions=True)

    async def _start_next(self) -> float | None:
        """Bring up the first that can be; seconds until the next look, None = when something happens."""
        if self._measure_due:
            self._measure_due = False
            if steps := await self._room.overdrawn():
                await self._room.make(steps, for_whom="what runs")
        waiting = {model.name: model for model in self._models.values() if self._is_wanted(model)}
        look_at: list[float] = []
        while waiting:
            now = self._clock()
            order = [
                WaitingModel(m.name, m.queue.since or now, m.queue.priority, len(m.queue))
                for m in waiting.values()
            ]
            name = next_to_start(order)
            if name is None:
                break
            again_s = await self._try(waiting.pop(name), now)
            if again_s == 0:
                return 0
            if again_s is not None:
                look_at.append(again_s)
        return min(look_at, default=None)

    async def _try(self, model: Model, now: float) -> float | None:
        """0: something was done, look again; else seconds until it may be possible, None = until news."""
        need = self._need(model)
        sleeper = self._sleeper(model, need)
        spec = self.spec_of_next(model, need)
        if sleeper is None and spec is None:
            if not self._may_come_back(model, need):
                self._turn_away(model)
            return None
        try:
            placed = await self._room.plan(model, spec, sleeper, model.queue.since or now)
        except ManagerError as error:
            self._fail(model, error)
            return 0
        if any(placed.fills & busy for busy in self._coming.values()):
            return None
        match placed.plan:
            case Fits():
                if spec is not None and placed.devices is not None:
                    spec = replace(spec, devices=placed.devices)
                model.is_loading, model.wants_another = True, False
                model.loading_runner = self._runner_of(sleeper, spec)
                task = asyncio.create_task(self._bring_up(model, sleeper, spec), name=f"start {model.name}")
                self._coming[task] = placed.fills
                task.add_done_callback(self._came)
            case NeverFits(message):
                self._fail(model, NoCapacity(message, retry_after_s=10.0))
            case Wait(until, reason):
                logger.info("model=%s waits: %s", model.name, reason)
                return _LOOK_AGAIN_S if until is None else max(0.01, until - now)
            case evict:
                await self._room.make(evict.steps, for_whom=model.name)
        return 0

    async def _bring_up(self, model: Model, sleeper: Instance | None, spec: InstanceSpec | None) -> None:
        """Wake the sleeper or start a replica, and see it through."""
        try:
            if sleeper is not None:
                try:
                    instance = await self._manager.wake(sleeper.instance_id)
                except (WrongState, InstanceNotFound):  # somebody has stopped it meanwhile
                    model.wants_another = True
                    return
            else:
                instance = self._start_replica(model, spec)
                while instance.state.is_pending:
                    await instance.changed()
        except ManagerError as error:
            model.is_loading = False
            if isinstance(error, NoCapacity) and not self._manager.has_free_slot:
                model.wants_another = True  # somebody was faster: it waits for a place as others do
                return
            self._fail(model, error)
            return
        finally:
            model.is_loading = False
        if instance.gate.is_open:
            model.started()
            model.grant()
            self._measure_due = True
        elif instance.failure is not None:
            self._fail(model, start_error(f"model {model.name!r}", instance.failure, instance.instance_id))

    def _came(self, task: asyncio.Task[None]) -> None:
        del self._coming[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s went wrong", task.get_name(), exc_info=error)
        self._news.tell()

    def own_runner(self, model: Model) -> RunnerKind | None:
        """What the catalog, or the checkpoint, makes of the model; None = nobody knows."""
        return None if model.profile is None else self._runner_of(None, spec_of(model.profile))

    def can_bring_up(self, model: Model, need: RunnerKind | None) -> bool:
        """Whether a replica could be started or woken that serves this; how is another question."""
        if any(can_serve(one.runner, need) for one in model.live):
            return True
        spec = self.spec_of_next(model, need)
        if spec is None:
            return not model.live
        return can_serve(self._runner_of(None, spec), need)

    def spec_of_next(self, model: Model, need: RunnerKind | None) -> InstanceSpec | None:
        """What the next replica is started as; None where none is left that could be."""
        if model.profile is not None:
            return spec_of(model.profile)
        ended = self._startable(model)
        fitting = [one for one in ended if can_serve(one.runner, need)]
        return (fitting or ended)[-1].spec if ended else None

    def _runner_of(self, sleeper: Instance | None, spec: InstanceSpec | None) -> RunnerKind | None:
        if sleeper is not None:
            return sleeper.runner
        try:
            return None if spec is None else plan_launch(spec, self._manager.config).runner
        except ManagerError:  # the start will say why it can't be
            return None

    def _need(self, model: Model) -> RunnerKind | None:
        """What the replica that is wanted next has to serve."""
        for need in model.queue.needs:
            if not model.is_up_for(need):
                return need
        return self.own_runner(model)

    def _sleeper(self, model: Model, need: RunnerKind | None) -> Instance | None:
        """The one to wake: first one that is asked for itself."""
        asleep = [one for one in model.live if self._manager.is_asleep(one.instance_id)]
        asked_for = [one for one in asleep if one.gate.queued]
        return next(iter(asked_for + [one for one in asleep if can_serve(one.runner, need)]), None)

    def _start_replica(self, model: Model, spec: InstanceSpec | None) -> Instance:
        """One that has ended is started again, else there is a new one. Raises ManagerError."""
        if spec is None:
            raise InstanceNotRunning(f"no instance of model {model.name!r} is left to be started")
        # GPUs that were chosen here are no reason to pass by what somebody has created without naming any.
        unplaced = replace(spec, devices=None)
        same = [one for one in self._startable(model) if one.spec in (spec, unplaced)]
        return self._manager.start(same[-1].instance_id) if same else self._manager.create(spec)

    def _startable(self, model: Model) -> list[Instance]:
        """Replicas that have ended, but for those that are being deleted or that the catalog has dropped."""
        ended = [one for one in model.replicas.values() if one.state.is_terminal]
        return [one for one in ended if self._is_kept(model, one)]

    def _is_kept(self, model: Model, one: Instance) -> bool:
        is_of_catalog = one.spec.profile is not None
        is_dropped = is_of_catalog and model.profile is None
        return not is_dropped and not self._manager.is_being_deleted(one.instance_id)

    def _may_come_back(self, model: Model, need: RunnerKind | None) -> bool:
        """Whether a replica is just ending, or begins anew: it can be started again, or comes by itself."""
        closed = [one for one in model.live if not one.gate.is_open and can_serve(one.runner, need)]
        return any(self._is_kept(model, one) for one in closed)

    def _turn_away(self, model: Model) -> None:
        """It was dropped from the catalog, or deleted, while requests waited for it."""
        logger.info("model=%s is gone; %d requests had waited for it", model.name, len(model.queue))
        model.wants_another = False
        message = f"there is no model {model.name!r} any more: it has left the catalog, or was deleted"
        model.queue.reject(
            lambda: ModelNotFound(message, param="model"), lambda need: not model.is_awake_for(need)
        )

    def _fail(self, model: Model, error: ManagerError) -> None:
        logger.warning("model=%s could not be started: %s", model.name, error)
        model.wants_another = False
        model.failed(error)
        # Where one more would have been welcome, those who wait are served by those there are.
        message, kind = str(error), type(error)
        retry_after_s = None if error.is_lasting else model.retry_at - self._clock()
        model.queue.reject(
            lambda: kind(message, retry_after_s=retry_after_s, public=error.public),
            lambda need: not model.is_awake_for(need),
        )
        self._news.tell()

    def _is_wanted(self, model: Model) -> bool:
        """Whether a replica is to be started or woken for it now."""
        if model.is_loading or _is_full(model):
            return False
        if model.error is not None and self._clock() < model.retry_at:
            return False
        if model.wants_another and not model.is_starting:
            return True
        return any(not model.is_up_for(need) for need in model.queue.needs)


def _is_full(model: Model) -> bool:
    """Whether one that is stopping has to be gone before another may come."""
    stopping = [one for one in model.live if one.state is InstanceState.STOPPING]
    limit = max(model.profile.max_replicas, 1) if model.profile is not None else len(model.live) + 1
    return bool(stopping) and len(model.live) >= limit


def spec_of(profile: ModelProfile) -> InstanceSpec:
    """What a replica of the profile is started as. It answers to the profile's name."""
    params = dict(profile.params)
    if profile.engine != "command":
        params.setdefault("served_model_name", profile.name)
    return InstanceSpec(
        model_name=profile.model,
        engine=profile.engine,
        params=params,
        timeout_s=profile.timeout_s,
        env=dict(profile.env),
        devices=profile.devices,
        command=profile.command,
        health_path=profile.health_path,
        profile=profile.name,
        pinned=profile.pinned,
        concurrency_limit=profile.concurrency_limit,
        expire_action=profile.expire_action,
    )
