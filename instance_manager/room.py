"""Room for models: measures what engines hold, asks the policy, and does what it says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from instance_manager.backends import plan_launch
from instance_manager.checkpoint_size import estimate
from instance_manager.errors import ManagerError
from instance_manager.eviction import (
    HOST,
    Device,
    EvictionAction,
    EvictionPolicy,
    EvictionStep,
    Resident,
    RoomPlan,
    plan_room,
)
from instance_manager.gpu import Gpu, GpuDriver
from instance_manager.instance import Instance
from instance_manager.kv_cache_size import Machine
from instance_manager.manager import InstanceManager
from instance_manager.measurements import Footprint, MeasuredKind, Measurements, params_fingerprint
from instance_manager.memory import budgets, host_available_bytes, measure_groups, wait_until_freed
from instance_manager.model_paths import find_model
from instance_manager.models import Model
from instance_manager.placement.local import choose_devices
from instance_manager.sleeping import SLEEP_LEVELS
from instance_manager.types import InstanceSpec

logger = logging.getLogger("berth.fleet")

_FREED_CAP_S = 5.0


@dataclass(frozen=True, slots=True)
class RoomConfig:
    """How much memory engines may take together, and how patient the policy is."""

    host_fraction: float = 0.9
    gpu_fraction: float = 0.95
    host_bytes: int | None = None  # in place of the fraction
    policy: EvictionPolicy = field(default_factory=EvictionPolicy)


@dataclass(frozen=True, slots=True)
class _Look:
    """The devices and what our instances hold, at one moment."""

    gpus: tuple[Gpu, ...]
    held: Mapping[str, Mapping[Device, int]]  # by instance id
    budgets: Mapping[Device, int]


class RoomKeeper:
    """One for all models; `plan` and `make` are called by one task, one after the other."""

    def __init__(
        self,
        manager: InstanceManager,
        config: RoomConfig,
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

    async def plan(
        self, model: Model, spec: InstanceSpec | None, sleeper: Instance | None, waiting_since: float
    ) -> tuple[RoomPlan, tuple[str, ...] | None]:
        """How the model gets its room, and the GPUs that it would have (None = as the spec says).

        Of `sleeper` and `spec`, the one that is to be brought up. Raises ManagerError for a spec that can't
        be started at all.
        """
        look = await asyncio.to_thread(self._look, self._live())
        self._record(look)
        devices: tuple[str, ...] | None = None
        if sleeper is not None:
            expected = self._expected(sleeper.spec) or Footprint(0, 0)
            gpus = tuple(uuid for uuid in look.held.get(sleeper.instance_id, {}) if uuid != HOST)
            now_held = look.held.get(sleeper.instance_id, {})
            need = {d: max(0, size - now_held.get(d, 0)) for d, size in expected.on(gpus).items()}
        else:
            expected = (None if spec is None else self._expected(spec)) or Footprint(0, 0)
            if spec is not None and look.gpus:
                devices = self._choose(look, spec, expected)
            need = expected.on(devices or ())
        residents = [self._resident(one, look) for one in self._live() if one is not sleeper]
        plan = plan_room(
            need, model.name, waiting_since, residents, look.budgets, self._clock(), self._config.policy
        )
        return plan, devices

    async def make(self, steps: Sequence[EvictionStep], *, for_whom: str) -> None:
        """Put to sleep or stop, in this order, each once its leases have ended; then plan again."""
        for step in steps:
            logger.info("instance=%s %s to make room for %s", step.instance_id, step.action.name, for_whom)
            self._manager.events.publish(
                "instance.evicted", step.instance_id, {"action": step.action.name.lower(), "for": for_whom}
            )
            free = {gpu.uuid: gpu.free_bytes for gpu in await asyncio.to_thread(self._driver.list_gpus)}
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
            for uuid, free_bytes in free.items():
                await wait_until_freed(uuid, free_bytes, _FREED_CAP_S, self._driver)

    async def sample(self) -> None:
        """Look at what each instance holds, and remember the peaks."""
        look = await asyncio.to_thread(self._look, self._live())
        self._record(look)
        try:
            await asyncio.to_thread(self._measurements.save)
        except OSError as error:
            logger.warning("what engines were measured to hold can't be kept: %s", error)

    def _live(self) -> list[Instance]:
        return self._manager.list()

    def _look(self, instances: Iterable[Instance]) -> _Look:
        """Blocks for milliseconds."""
        pids = {one.pid: one.instance_id for one in instances if one.pid is not None}
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
        return _Look(gpus, held, limits)

    def _record(self, look: _Look) -> None:
        for one in self._live():
            held = look.held.get(one.instance_id)
            if held and not one.state.is_pending:
                one.memory_bytes = sum(held.values())
                run = f"{one.instance_id}/{one.spawns}"
                self._measurements.record(_kind(one.spec), run, one.level, Footprint.of(held))

    def _expected(self, spec: InstanceSpec, level: int = 0) -> Footprint | None:
        """The measured peak, else the checkpoint's estimate; None if neither is known."""
        if (peak := self._measurements.peak(_kind(spec), level)) is not None:
            return peak
        config = self._manager.config
        params = plan_launch(spec, config).params
        gpus = () if spec.devices == () else self._driver.list_gpus()
        count = min(len(gpus), int(params.get("tensor_parallel_size", 1)))
        machine = Machine(
            host_available_bytes=host_available_bytes(),
            num_gpus=count,
            gpu_total_bytes=gpus[0].total_bytes if gpus else 0,
        )
        environ = {**config.engine_env, **spec.env}
        model = find_model(spec.model_name, config.model_dirs)
        guess = estimate(model, spec.engine, params, environ, machine)
        return None if guess is None else guess.footprint(level)

    def _choose(self, look: _Look, spec: InstanceSpec, expected: Footprint) -> tuple[str, ...] | None:
        if spec.devices is not None and not spec.devices:
            return ()
        params = plan_launch(spec, self._manager.config).params
        count = int(params.get("tensor_parallel_size", 1))
        requested = None if spec.devices is None else tuple(spec.devices)
        return choose_devices(look.gpus, count, expected.gpu_bytes_each, requested)

    def _resident(self, one: Instance, look: _Look) -> Resident:
        held = dict(look.held.get(one.instance_id, {}))
        if one.state.is_pending and (expected := self._expected(one.spec)) is not None:
            gpus = tuple(device for device in held if device != HOST)
            held = {device: max(size, held.get(device, 0)) for device, size in expected.on(gpus).items()}
        return Resident(
            instance_id=one.instance_id,
            model_name=one.spec.profile or one.model_name,
            level=one.level,
            held=held,
            held_asleep=self._held_asleep(one, held),
            in_flight=one.gate.in_flight,
            queued=one.gate.queued,
            pinned=one.pinned or one.state.is_pending,  # what starts isn't disturbed
            last_used=one.gate.last_active,
            resident_since=one.awake_since if one.awake_since is not None else self._clock(),
        )

    def _held_asleep(self, one: Instance, held: Mapping[Device, int]) -> dict[int, dict[Device, int]]:
        if one.plan.sleep_style is None:
            return {}
        gpus = tuple(device for device in held if device != HOST)
        asleep: dict[int, dict[Device, int]] = {}
        for level in SLEEP_LEVELS:
            expected = (self._expected(one.spec, level) or Footprint(0, 0)).on(gpus)
            asleep[level] = {device: min(size, expected.get(device, 0)) for device, size in held.items()}
        return asleep


def _kind(spec: InstanceSpec) -> MeasuredKind:
    return MeasuredKind(
        spec.model_name, spec.engine, params_fingerprint(spec.params, len(spec.devices or ()))
    )
