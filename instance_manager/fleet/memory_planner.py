"""Room for models: measures what engines hold, asks the policy, and does what it says."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from instance_manager.backends import plan_launch
from instance_manager.backends.model_paths import find_model
from instance_manager.errors import ManagerError, ModelNotFound
from instance_manager.fleet.models import Model
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.sleeping import SLEEP_LEVELS
from instance_manager.manager import InstanceManager
from instance_manager.memory.advice import Limits, advise
from instance_manager.memory.checkpoint_size import Estimate, estimate
from instance_manager.memory.device_memory import (
    budgets,
    host_available_bytes,
    host_total_bytes,
    measure_groups,
    wait_until_freed,
)
from instance_manager.memory.eviction import (
    HOST,
    PLACE,
    CapacityPlan,
    Device,
    Evict,
    EvictionAction,
    EvictionPolicy,
    EvictionStep,
    NeverFits,
    Resident,
    plan_capacity,
)
from instance_manager.memory.gpu import Gpu, GpuDriver, find_gpu
from instance_manager.memory.kv_cache_size import Machine
from instance_manager.memory.measurements import Footprint, MeasuredKind, Measurements, params_fingerprint
from instance_manager.memory.placement.local import choose_devices
from instance_manager.process.environment import child_environment
from instance_manager.types import InstanceSpec, InstanceState

logger = logging.getLogger("berth.fleet")

_TIGHT_FROM = 0.8  # of a budget
_FREED_CAP_S = 5.0
_FREED_PART = 0.9  # of what a victim held on a GPU; others may take some meanwhile


@dataclass(frozen=True, slots=True)
class MemoryPlannerConfig:
    """How much memory engines may take together, and how patient the policy is."""

    host_fraction: float = 0.9
    gpu_fraction: float = 0.95
    host_bytes: int | None = None  # in place of the fraction
    policy: EvictionPolicy = field(default_factory=EvictionPolicy)


@dataclass(frozen=True, slots=True)
class _Life:
    """What an instance is while it holds what it holds. `spawn`: which of its processes."""

    spawn: int
    state: InstanceState
    level: int

    @classmethod
    def of(cls, one: Instance) -> _Life:
        return cls(one.spawns, one.state, one.level)


@dataclass(frozen=True, slots=True)
class _Look:
    """The devices and what our instances hold, at one moment."""

    gpus: tuple[Gpu, ...]
    held: Mapping[str, Mapping[Device, int]]  # by instance id
    lives: Mapping[str, _Life]  # likewise; as they were before anything was measured
    budgets: Mapping[Device, int]


@dataclass(frozen=True, slots=True)
class Placed:
    """How a model gets its room."""

    plan: CapacityPlan
    devices: tuple[str, ...] | None  # the GPUs that it would have; None = as its spec says
    fills: frozenset[Device]  # where nothing else may come up meanwhile


class MemoryPlanner:
    """One for all models; `plan` and `make` are called by one task, one after the other."""

    def __init__(
        self,
        manager: InstanceManager,
        config: MemoryPlannerConfig,
        measurements: Measurements,
        driver: GpuDriver,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._config = config
        self._measurements = measurements
        self._driver = driver
        self._clock = clock
        self._overdrawn_since: float | None = None
        self.is_tight = (
            False  # whether engines held so much of main memory that they are to be watched closely
        )
        self._estimates: dict[tuple[MeasuredKind, bool], Estimate] = {}  # also by whether it is kept off GPUs

    async def plan(
        self, model: Model, spec: InstanceSpec | None, sleeper: Instance | None, waiting_since: float
    ) -> Placed:
        """For the one of `sleeper` and `spec` that is to be brought up, the sleeper where there is one.

        Raises ManagerError for a spec that can't be started at all.
        """
        look = await asyncio.to_thread(self._look, self._live())
        self._record(look)
        devices: tuple[str, ...] | None = None
        if sleeper is not None:
            expected = self._expected_of(sleeper) or Footprint(0, 0)
            now_held = look.held.get(sleeper.instance_id, {})
            gpus = self._gpus_of(sleeper, look)
            whole = expected.on(gpus)
            need = {device: max(0, size - now_held.get(device, 0)) for device, size in whole.items()}
        else:
            expected = (None if spec is None else self._expected(spec)) or Footprint(0, 0)
            if spec is not None and (look.gpus or spec.devices):
                devices = self._choose(look, spec, expected)
            gpus = devices or ()
            need = {**expected.on(gpus), PLACE: 1}
        residents = [_with_place(one, self._resident(one, look)) for one in self._live()]
        has_free_slot = self._manager.has_free_slot
        limits = {**look.budgets, PLACE: sum(one.held.get(PLACE, 0) for one in residents) + has_free_slot}

        def planned(need: Mapping[Device, int]) -> CapacityPlan:
            now, policy = self._clock(), self._config.policy
            return plan_capacity(need, model.name, waiting_since, residents, limits, now, policy)

        plan = planned(need)
        if isinstance(plan, NeverFits):
            # A place would be of no use to what has no room; nor room to what has no place.
            without_place = planned({**need, PLACE: 0})
            if isinstance(without_place, NeverFits):
                advice = self._advice(model, spec, sleeper, need, residents, look)
                plan = NeverFits(f"{without_place.message}. {advice}")
            else:
                plan = NeverFits(f"{plan.message}: {self._manager.why_no_free_slot}")
        return Placed(plan, devices, frozenset(gpus or (HOST,)))

    def _advice(
        self,
        model: Model,
        spec: InstanceSpec | None,
        sleeper: Instance | None,
        need: Mapping[Device, int],
        residents: Sequence[Resident],
        look: _Look,
    ) -> str:
        """What would help the model, whose place is not in question. Blocks for a moment: opens files."""
        need = {device: size for device, size in need.items() if device != PLACE}
        wanted = spec if sleeper is None else sleeper.spec
        gpus = tuple(device for device in need if device != HOST)

        def needs_with(change: Mapping[str, Any]) -> Mapping[Device, int] | None:
            if wanted is None or wanted.engine == "command":
                return None
            guess = self._estimate(replace(wanted, params={**wanted.params, **change}))
            return None if guess is None else guess.footprint().on(gpus)

        return advise(need, model.name, residents, self._limits(look), needs_with)

    def _limits(self, look: _Look) -> dict[Device, Limits]:
        total = host_total_bytes()
        host = self._config.host_bytes
        set_to = int(total * self._config.host_fraction) if host is None else host
        limits = {HOST: Limits(look.budgets[HOST], set_to, total)}
        for gpu in look.gpus:
            allowed = int(gpu.total_bytes * self._config.gpu_fraction)
            limits[gpu.uuid] = Limits(look.budgets[gpu.uuid], allowed, gpu.total_bytes)
        return limits

    async def overdrawn(self) -> tuple[EvictionStep, ...]:
        """Measure; what is to go because engines hold more than all may together.

        Nothing that is in use, until that has lasted for the policy's longest wait.
        """
        look = await asyncio.to_thread(self._look, self._live())
        self._record(look)
        try:
            await asyncio.to_thread(self._measurements.save)
        except OSError as error:
            logger.warning("what engines were measured to hold can't be kept: %s", error)
        ours = {device: sum(held.get(device, 0) for held in look.held.values()) for device in look.budgets}
        self.is_tight = ours[HOST] > _TIGHT_FROM * look.budgets[HOST]
        if all(size <= look.budgets[device] for device, size in ours.items()):
            self._overdrawn_since = None
            return ()
        residents = [self._resident(one, look) for one in self._live()]
        now = self._clock()
        since = self._overdrawn_since = now if self._overdrawn_since is None else self._overdrawn_since
        a_byte = dict.fromkeys(look.budgets, 1)  # of a device where nothing is needed, no debt is settled
        plan = plan_capacity(a_byte, "", since, residents, look.budgets, now, self._config.policy)
        return plan.steps if isinstance(plan, Evict) else ()

    async def make(self, steps: Sequence[EvictionStep], *, for_whom: str) -> None:
        """Put to sleep or stop, in this order, each once its leases have ended; then plan again."""
        for step in steps:
            logger.info("instance=%s %s to make room for %s", step.instance_id, step.action.name, for_whom)
            self._manager.events.publish(
                "instance.evicted", step.instance_id, {"action": step.action.name.lower(), "for": for_whom}
            )
            before = await asyncio.to_thread(self._look, self._live())
            try:
                if step.action is EvictionAction.STOP:
                    await self._manager.stop(
                        step.instance_id, reason=f"made room for {for_whom}", patient=True
                    )
                else:
                    await self._manager.sleep(step.instance_id, int(step.action))
            except ManagerError as error:  # it has gone its own way meanwhile
                logger.info("instance=%s: %s", step.instance_id, error)
                continue
            await self._freed(step, before)

    async def _freed(self, step: EvictionStep, before: _Look) -> None:
        """Wait until a GPU's memory is back: the driver gives it some time after the process has gone."""
        if step.action is not EvictionAction.STOP:
            return  # the engine has answered once it had given it back
        for gpu in before.gpus:
            held = before.held.get(step.instance_id, {}).get(gpu.uuid, 0)
            if held:
                target = gpu.free_bytes + int(held * _FREED_PART)
                await wait_until_freed(gpu.uuid, target, _FREED_CAP_S, self._driver)

    def _live(self) -> list[Instance]:
        return self._manager.list()

    def _look(self, instances: Iterable[Instance]) -> _Look:
        """Blocks for milliseconds."""
        by_leader = {one.pid: one for one in instances if one.pid is not None}
        lives = {one.instance_id: _Life.of(one) for one in by_leader.values()}
        pids = {pid: one.instance_id for pid, one in by_leader.items()}
        by_pid = measure_groups(pids, self._driver)
        held = {pids[pid]: devices for pid, devices in by_pid.items()}
        ours: dict[Device, int] = {}
        for devices in by_pid.values():
            for device, size in devices.items():
                ours[device] = ours.get(device, 0) + size
        gpus = tuple(self._driver.list_gpus())
        limits = budgets(
            gpus, ours, host_fraction=self._config.host_fraction, gpu_fraction=self._config.gpu_fraction
        )
        if self._config.host_bytes is not None:
            limits = {**limits, HOST: self._config.host_bytes}
        return _Look(gpus, held, lives, limits)

    def _record(self, look: _Look) -> None:
        """What an instance held that has gone on to something else meanwhile is nobody's measure."""
        for one in self._live():
            held = look.held.get(one.instance_id)
            if not held or look.lives[one.instance_id] != _Life.of(one):
                continue
            one.memory_bytes = sum(held.values())
            if not one.state.is_pending:
                run = f"{one.instance_id}/{one.spawns}"
                self._measurements.record(_kind(one.spec), run, one.level, Footprint.of(held))

    def _expected(self, spec: InstanceSpec, level: int = 0) -> Footprint | None:
        """From what was measured and what the checkpoint tells; None if neither is known."""
        peak = self._measurements.peak(_kind(spec), level)
        if peak is not None and (level > 0 or spec.engine != "engine"):
            return peak  # an estimate would not change it
        known = (_kind(spec), spec.devices == ())
        # Once there is a peak, nothing of an estimate counts that would be different another time.
        guess = self._estimates.get(known) if peak is not None else None
        if guess is None and (guess := self._estimate(spec)) is not None:
            self._estimates[known] = guess
        return peak if guess is None else guess.expected(peak, level)

    def _expected_of(self, one: Instance, level: int = 0) -> Footprint | None:
        """The same of one that is there, whose files may be gone: then what was measured counts."""
        try:
            return self._expected(one.spec, level)
        except ManagerError:
            return self._measurements.peak(_kind(one.spec), level)

    def _estimate(self, spec: InstanceSpec) -> Estimate | None:
        config = self._manager.config
        params = plan_launch(spec, config).params
        gpus = () if spec.devices == () else self._driver.list_gpus()
        count = min(len(gpus), int(params.get("tensor_parallel_size", 1)))
        machine = Machine(
            host_available_bytes=host_available_bytes(),
            num_gpus=count,
            gpu_total_bytes=gpus[0].total_bytes if gpus else 0,
        )
        environ = child_environment(os.environ, config.engine_env, spec.env)
        try:
            model = find_model(spec.model_name, config.model_dirs)
        except ModelNotFound:
            if spec.engine != "command":
                raise
            return None  # a command's model may be called anything
        return estimate(model, spec.engine, params, environ, machine)

    def _choose(self, look: _Look, spec: InstanceSpec, expected: Footprint) -> tuple[str, ...] | None:
        if spec.devices is not None and not spec.devices:
            return ()
        params = plan_launch(spec, self._manager.config).params
        count = int(params.get("tensor_parallel_size", 1))
        requested = None if spec.devices is None else tuple(spec.devices)
        return choose_devices(look.gpus, count, expected.gpu_bytes_each, requested)

    def _resident(self, one: Instance, look: _Look) -> Resident:
        held = dict(look.held.get(one.instance_id, {}))
        gpus = self._gpus_of(one, look)
        is_untold = any(gpu not in held for gpu in gpus) and one.level == 0
        # What starts, runs or isn't told of may come to hold what is expected; what sleeps, what it has held.
        is_awake = one.state.is_pending or is_untold or one.level == 0
        known = self._expected_of(one) if is_awake else self._measurements.peak(_kind(one.spec), one.level)
        if known is not None:
            held = {device: max(size, held.get(device, 0)) for device, size in known.on(gpus).items()}
        is_stopping = one.state is InstanceState.STOPPING
        return Resident(
            instance_id=one.instance_id,
            model_name=one.spec.profile or one.model_name,
            level=0 if one.state.is_pending else one.level,  # what wakes is as good as awake
            held=held,
            held_asleep=self._held_asleep(one, gpus),
            in_flight=one.gate.in_flight,
            queued=one.gate.queued,
            pinned=one.pinned,
            last_used=one.gate.last_active,
            # What starts isn't disturbed, even where nothing has a minimum residency.
            resident_since=math.inf if one.state.is_pending else (one.awake_since or 0.0),
            leaving=EvictionAction.STOP if is_stopping else None,
        )

    def _held_asleep(self, one: Instance, gpus: tuple[Device, ...]) -> dict[int, dict[Device, int]]:
        """By level; only those that are known, at least by an estimate."""
        if one.plan.sleep_style is None:
            return {}
        expected = {level: self._expected_of(one, level) for level in SLEEP_LEVELS}
        return {level: size.on(gpus) for level, size in expected.items() if size is not None}

    def _gpus_of(self, one: Instance, look: _Look) -> tuple[Device, ...]:
        """Those that it was given, or is seen on."""
        given = [find_gpu(look.gpus, name) for name in one.spec.devices or ()]
        seen = (device for device in look.held.get(one.instance_id, {}) if device != HOST)
        return tuple(dict.fromkeys([*(gpu.uuid for gpu in given if gpu is not None), *seen]))


def _with_place(one: Instance, resident: Resident) -> Resident:
    """It holds a place for as long as it has a port, however deep it sleeps."""
    if one.port is None:
        return resident
    asleep = {level: {**held, PLACE: 1} for level, held in resident.held_asleep.items()}
    return replace(resident, held={**resident.held, PLACE: 1}, held_asleep=asleep)


def _kind(spec: InstanceSpec) -> MeasuredKind:
    return MeasuredKind(
        spec.model_name, spec.engine, params_fingerprint(spec.params, len(spec.devices or ()))
    )
