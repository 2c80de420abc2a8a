"""The devices and what this node's instances hold of them, measured at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from instance_manager.lifecycle.instance import Instance
from instance_manager.memory.container_memory import add_containers
from instance_manager.memory.device_memory import budgets, measure_groups
from instance_manager.memory.devices import HOST, Device
from instance_manager.memory.gpu import Gpu, GpuDriver, find_gpu
from instance_manager.types import InstanceState


@dataclass(frozen=True, slots=True)
class RunState:
    """What an instance was when it was measured. `generation`: which of its processes."""

    generation: int
    state: InstanceState
    level: int

    @classmethod
    def of(cls, one: Instance) -> RunState:
        return cls(one.generation, one.state, one.level)


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """All mappings but `budgets` are by instance id."""

    gpus: tuple[Gpu, ...]
    held: Mapping[str, Mapping[Device, int]]
    run_states: Mapping[str, RunState]  # taken before anything was measured
    budgets: Mapping[Device, int]

    def gpus_of(self, one: Instance) -> tuple[Device, ...]:
        """The GPUs that the instance was given or was seen to use."""
        given = [find_gpu(self.gpus, name) for name in one.spec.devices or ()]
        seen = (device for device in self.held.get(one.instance_id, {}) if device != HOST)
        return tuple(dict.fromkeys([*(gpu.uuid for gpu in given if gpu is not None), *seen]))


def containers_of(instances: Iterable[Instance]) -> dict[int, int]:
    """The first process of each one's container, as far as it can be seen here, by the instance's pid."""
    found = ((one.pid, one.container.pid) for one in instances if one.container is not None)
    return {pid: first for pid, first in found if pid is not None and first is not None}


def take_snapshot(
    instances: Iterable[Instance],
    driver: GpuDriver,
    *,
    host_fraction: float,
    gpu_fraction: float,
    host_bytes: int | None,
) -> MemorySnapshot:
    """Blocks for milliseconds. `host_bytes`: a budget in place of the host's fraction."""
    by_leader = {one.pid: one for one in instances if one.pid is not None}
    run_states = {one.instance_id: RunState.of(one) for one in by_leader.values()}
    pids = {pid: one.instance_id for pid, one in by_leader.items()}
    by_pid = measure_groups(pids, driver)
    add_containers(by_pid, containers_of(by_leader.values()), driver)
    held = {pids[pid]: devices for pid, devices in by_pid.items()}
    ours: dict[Device, int] = {}
    for devices in by_pid.values():
        for device, size in devices.items():
            ours[device] = ours.get(device, 0) + size
    gpus = tuple(driver.list_gpus())
    limits = budgets(gpus, ours, host_fraction=host_fraction, gpu_fraction=gpu_fraction)
    if host_bytes is not None:
        limits = {**limits, HOST: host_bytes}
    return MemorySnapshot(gpus, held, run_states, limits)
