"""Memory for models: measures what engines hold, plans evictions by the policy, and executes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from host_limits.host_memory import host_total_bytes
from instance_manager.backends import backend_of, plan_launch
from instance_manager.errors import InvalidSpec, ManagerError
from instance_manager.fleet.expected_memory import ExpectedMemory, kind_of
from instance_manager.fleet.making_room import MakingRoom
from instance_manager.fleet.memory_snapshot import MemorySnapshot, RunState, take_snapshot
from instance_manager.fleet.models import Model
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.sleep_client import SLEEP_LEVELS
from instance_manager.manager import InstanceManager
from instance_manager.memory.advice import Limits, advise
from instance_manager.memory.device_memory import wait_until_freed
from instance_manager.memory.devices import HOST, SLOT, Device
from instance_manager.memory.eviction import CapacityPlan, Evict, EvictionPolicy, NeverFits, plan_capacity
from instance_manager.memory.gpu import GpuDriver
from instance_manager.memory.measurements import Footprint, Measurements
from instance_manager.memory.placement.local import choose_devices, num_gpus_of
from instance_manager.memory.victims import EvictionAction, EvictionStep, Resident
from instance_manager.types import InstanceSpec

logger = logging.getLogger("berth.fleet")

_TIGHT_FRACTION = 0.8  # of a budget
_FREED_TIMEOUT_S = 5.0
_FREED_FRACTION = 0.9  # of what a victim held on a GPU; other processes may take some meanwhile


@dataclass(frozen=True, slots=True)
class MemoryPlannerConfig:
    """How much memory all engines together may hold, and the eviction policy."""

    host_fraction: float = 0.9
    gpu_fraction: float = 0.95
    host_bytes: int | None = None  # in place of `host_fraction`
    policy: EvictionPolicy = field(default_factory=EvictionPolicy)


@dataclass(frozen=True, slots=True)
class Placement:
    """How a model gets its memory, and where."""

    plan: CapacityPlan
    need: Mapping[Device, int]
    devices: tuple[str, ...] | None  # the GPUs that it would get; None = as its spec says
    fills: frozenset[Device]  # devices where nothing else may start meanwhile


class MemoryPlanner:
    """One for all models. One task calls `plan`; an `execute` that drains may run beside it."""

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
        self._expected = ExpectedMemory(manager.config, measurements, driver)
        self._overcommitted_since: float | None = None
        self.is_tight = False  # engines held so much main memory that they should be measured often

    async def plan(
        self,
        model: Model,
        spec: InstanceSpec | None,
        sleeping: Instance | None,
        waiting_since: float,
        under_way: Sequence[MakingRoom] = (),
    ) -> Placement:
        """For waking `sleeping` where there is one, else for starting `spec`.

        Raises ManagerError for a spec that can't be started at all.
        """
        snapshot = await asyncio.to_thread(self._measure, self._live())
        self._record(snapshot)
        devices: tuple[str, ...] | None = None
        if sleeping is not None:
            expected = self._expected.of_instance(sleeping) or Footprint(0, 0)
            now_held = snapshot.held.get(sleeping.instance_id, {})
            gpus = snapshot.gpus_of(sleeping)
            whole = expected.on(gpus)
            need = {device: max(0, size - now_held.get(device, 0)) for device, size in whole.items()}
        else:
            expected = (None if spec is None else self._expected.of_spec(spec)) or Footprint(0, 0)
            if spec is not None and (snapshot.gpus or spec.devices):
                devices = self._choose_devices(snapshot, spec, expected)
            gpus = devices or ()
            need = {**expected.on(gpus), SLOT: 1}
        residents = self._residents(snapshot, under_way, model.name)
        has_free_slot = self._manager.has_free_slot
        limits = {**snapshot.budgets, SLOT: sum(one.held.get(SLOT, 0) for one in residents) + has_free_slot}

        def planned(need: Mapping[Device, int]) -> CapacityPlan:
            now, policy = self._clock(), self._config.policy
            return plan_capacity(need, model.name, waiting_since, residents, limits, now, policy)

        plan = planned(need)
        if isinstance(plan, NeverFits):
            # Name the reason that would remain: a free slot is useless without memory, and the reverse.
            memory_only = planned({**need, SLOT: 0})
            if isinstance(memory_only, NeverFits):
                advice = self._advice(model, spec, sleeping, need, residents, snapshot)
                plan = NeverFits(f"{memory_only.message}. {advice}")
            else:
                plan = NeverFits(f"{plan.message}: {self._manager.why_no_free_slot}")
        return Placement(plan, need, devices, frozenset(gpus or (HOST,)))

    def _advice(
        self,
        model: Model,
        spec: InstanceSpec | None,
        sleeping: Instance | None,
        need: Mapping[Device, int],
        residents: Sequence[Resident],
        snapshot: MemorySnapshot,
    ) -> str:
        """What would make the model fit; slots don't matter here. Blocks for a moment: opens files."""
        need = {device: size for device, size in need.items() if device != SLOT}
        wanted = spec if sleeping is None else sleeping.spec
        gpus = tuple(device for device in need if device != HOST)

        def needs_with(change: Mapping[str, Any]) -> Mapping[Device, int] | None:
            if wanted is None or not backend_of(wanted.engine).takes_params:
                return None
            try:
                guess = self._expected.estimate(replace(wanted, params={**wanted.params, **change}))
            except InvalidSpec:  # its kind has no such flag
                return None
            return None if guess is None else guess.footprint().on(gpus)

        return advise(need, model.name, residents, self._limits(snapshot), needs_with)

    def _limits(self, snapshot: MemorySnapshot) -> dict[Device, Limits]:
        total = host_total_bytes()
        host = self._config.host_bytes
        set_to = int(total * self._config.host_fraction) if host is None else host
        limits = {HOST: Limits(snapshot.budgets[HOST], set_to, total)}
        for gpu in snapshot.gpus:
            allowed = int(gpu.total_bytes * self._config.gpu_fraction)
            limits[gpu.uuid] = Limits(snapshot.budgets[gpu.uuid], allowed, gpu.total_bytes)
        return limits

    async def plan_reclaim(self) -> tuple[EvictionStep, ...]:
        """Measure, and plan evictions where engines together hold more than a budget.

        Instances in use are spared until that has lasted for the policy's longest wait.
        """
        snapshot = await asyncio.to_thread(self._measure, self._live())
        self._record(snapshot)
        try:
            await asyncio.to_thread(self._measurements.save)
        except OSError as error:
            logger.warning("measured memory can't be saved: %s", error)
        budgets = snapshot.budgets
        ours = {device: sum(held.get(device, 0) for held in snapshot.held.values()) for device in budgets}
        self.is_tight = ours[HOST] > _TIGHT_FRACTION * budgets[HOST]
        if all(size <= budgets[device] for device, size in ours.items()):
            self._overcommitted_since = None
            return ()
        residents = [self._resident(one, snapshot) for one in self._live()]
        now = self._clock()
        if self._overcommitted_since is None:
            self._overcommitted_since = now
        one_byte = dict.fromkeys(budgets, 1)  # a plan with a need of 0 would ignore an overcommitted device
        plan = plan_capacity(
            one_byte, "", self._overcommitted_since, residents, budgets, now, self._config.policy
        )
        return plan.steps if isinstance(plan, Evict) else ()

    async def execute(self, steps: Sequence[EvictionStep], *, for_model: str) -> bool:
        """Put to sleep or stop, in this order; then plan again.

        False: a victim has come into use since it was chosen. It stays, and the steps after it aren't taken.
        """
        for step in steps:
            logger.info("instance=%s %s to make room for %s", step.instance_id, step.action.name, for_model)
            before = await asyncio.to_thread(self._measure, self._live())
            try:
                was_evicted = await self._manager.evict(
                    step, reason=f"made room for {for_model}", for_model=for_model
                )
            except ManagerError as error:  # its state has changed meanwhile
                logger.info("instance=%s: %s", step.instance_id, error)
                continue
            if not was_evicted:
                logger.info("instance=%s is in use by now, and stays", step.instance_id)
                return False
            await self._wait_until_freed(step, before)
        return True

    async def _wait_until_freed(self, step: EvictionStep, before: MemorySnapshot) -> None:
        """Wait for GPU memory to be free: the driver releases it some time after the process has ended."""
        if step.action is not EvictionAction.STOP:
            return  # an engine confirms sleep only after it has released its memory
        for gpu in before.gpus:
            held = before.held.get(step.instance_id, {}).get(gpu.uuid, 0)
            if held:
                target = gpu.free_bytes + int(held * _FREED_FRACTION)
                await wait_until_freed(gpu.uuid, target, _FREED_TIMEOUT_S, self._driver)

    def _residents(
        self, snapshot: MemorySnapshot, under_way: Sequence[MakingRoom], for_model: str
    ) -> list[Resident]:
        residents = [self._resident(one, snapshot) for one in self._live()]
        for room in under_way:
            residents = [room.as_leaving(one) for one in residents]
        return [*residents, *(room.as_resident for room in under_way if room.model_name != for_model)]

    def _live(self) -> list[Instance]:
        return self._manager.list()

    def _measure(self, instances: Sequence[Instance]) -> MemorySnapshot:
        config = self._config
        return take_snapshot(
            instances,
            self._driver,
            host_fraction=config.host_fraction,
            gpu_fraction=config.gpu_fraction,
            host_bytes=config.host_bytes,
        )

    def _record(self, snapshot: MemorySnapshot) -> None:
        """Skip instances whose state changed during the measurement: it would count for the wrong state."""
        for one in self._live():
            held = snapshot.held.get(one.instance_id)
            if not held or snapshot.run_states[one.instance_id] != RunState.of(one):
                continue
            one.set_memory(sum(held.values()), sum(held.values()) - held.get(HOST, 0))
            if not one.state.is_pending:
                run = f"{one.instance_id}/{one.generation}"
                self._measurements.record(kind_of(one.spec), run, one.level, Footprint.of(held))

    def _choose_devices(
        self, snapshot: MemorySnapshot, spec: InstanceSpec, expected: Footprint
    ) -> tuple[str, ...] | None:
        if spec.devices is not None and not spec.devices:
            return ()
        params = plan_launch(spec, self._manager.config).params
        requested = None if spec.devices is None else tuple(spec.devices)
        return choose_devices(snapshot.gpus, num_gpus_of(params), expected.gpu_bytes_each, requested)

    def _resident(self, one: Instance, snapshot: MemorySnapshot) -> Resident:
        held = dict(snapshot.held.get(one.instance_id, {}))
        gpus = snapshot.gpus_of(one)
        is_unmeasured = any(gpu not in held for gpu in gpus) and one.level == 0
        # Budget sleeping instances at their measured peak, all others at their expected size.
        is_awake = one.state.is_pending or is_unmeasured or one.level == 0
        if is_awake:
            known = self._expected.of_instance(one)
        else:
            known = self._measurements.peak(kind_of(one.spec), one.level)
        if known is not None:
            held = {device: max(size, held.get(device, 0)) for device, size in known.on(gpus).items()}
        held_asleep = self._held_asleep(one, gpus)
        if one.port is not None:  # it holds a slot however deep it sleeps
            held = {**held, SLOT: 1}
            held_asleep = {level: {**sizes, SLOT: 1} for level, sizes in held_asleep.items()}
        return one.resident(held, held_asleep)

    def _held_asleep(self, one: Instance, gpus: tuple[Device, ...]) -> dict[int, dict[Device, int]]:
        """By level; only those that were measured or can be estimated."""
        if one.plan.sleep_style is None:
            return {}
        expected = {level: self._expected.of_instance(one, level) for level in SLEEP_LEVELS}
        return {level: size.on(gpus) for level, size in expected.items() if size is not None}
