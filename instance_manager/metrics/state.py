"""The current state as gauges: instances, waiting requests, and memory by device and instance.

Read on request; nothing is stored here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from host_limits.host_memory import host_available_bytes, host_total_bytes
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.memory_snapshot import containers_of
from instance_manager.lifecycle.instance import Instance
from instance_manager.memory.container_memory import add_containers
from instance_manager.memory.device_memory import measure_groups
from instance_manager.memory.devices import HOST, Device
from instance_manager.memory.gpu import GpuDriver
from instance_manager.types import InstanceState

_MODEL_STATUS = ("running", "starting", "sleeping", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One device's memory in bytes; `name` is the GPU's model, or empty."""

    device: Device
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Devices and what each instance holds on each, at one moment."""

    devices: tuple[DeviceMemory, ...] = ()
    held: Mapping[str, Mapping[Device, int]] | None = None  # by instance id


def model_label(instance: Instance) -> str:
    """The name of an instance's model in all metrics: the catalog's, else the one it was created with."""
    return instance.spec.profile or instance.model_name


def read_memory(
    leaders: Mapping[int, str], containers: Mapping[int, int], driver: GpuDriver
) -> MemoryReading:
    """`leaders`: instance ids by the pid of their process group. Blocks for milliseconds.

    `containers`: the first processes of those in containers, by the same pids.
    """
    by_pid = measure_groups(leaders, driver)
    add_containers(by_pid, containers, driver)
    devices = [DeviceMemory(HOST, "", host_total_bytes(), host_available_bytes())]
    devices += [DeviceMemory(g.uuid, g.name, g.total_bytes, g.free_bytes) for g in driver.list_gpus()]
    return MemoryReading(tuple(devices), {leaders[pid]: held for pid, held in by_pid.items()})


class StateMetrics(Collector):
    """Renders the fleet's current state, and the last reading of memory."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.memory = MemoryReading()

    def leaders(self) -> dict[int, str]:
        """The argument of `read_memory`."""
        live = self._fleet.manager.list()
        return {one.pid: one.instance_id for one in live if one.pid is not None}

    def containers(self) -> dict[int, int]:
        """Likewise."""
        return containers_of(self._fleet.manager.list())

    def collect(self) -> Iterable[Metric]:
        instances = self._fleet.manager.list(include_terminal=True)
        return (*self._instances(instances), *self._models(), *self._memory(instances))

    def _instances(self, instances: list[Instance]) -> Iterable[Metric]:
        labels = ["instance", "model"]
        total = GaugeMetricFamily("berth_instances", "Instances by state.", labels=["state"])
        state = GaugeMetricFamily(
            "berth_instance_state",
            "1 for the current state of an instance, 0 for all other states.",
            labels=[*labels, "engine", "state"],
        )
        level = GaugeMetricFamily(
            "berth_instance_sleep_level", "Sleep level of an instance; 0 = awake.", labels=labels
        )
        waiting = GaugeMetricFamily(
            "berth_instance_requests_waiting",
            "Requests under /proxy/ that wait for this particular instance.",
            labels=labels,
        )
        idle = GaugeMetricFamily(
            "berth_instance_idle_seconds",
            "Time since an instance's last request; 0 while it has requests in flight.",
            labels=labels,
        )
        now = time.monotonic()
        counts = Counter(one.state for one in instances)
        for each in InstanceState:
            total.add_metric([each.value], counts[each])
        for one in instances:
            names = [one.instance_id, model_label(one)]
            for each in InstanceState:
                state.add_metric([*names, one.spec.engine, each.value], float(one.state is each))
            if one.state.is_terminal:
                continue
            level.add_metric(names, one.level)
            waiting.add_metric(names, one.gate.queued)
            idle.add_metric(names, 0.0 if one.gate.in_flight else max(0.0, now - one.gate.last_active))
        return (total, state, level, waiting, idle)

    def _models(self) -> Iterable[Metric]:
        status = GaugeMetricFamily("berth_models", "Models by status.", labels=["status"])
        waiting = GaugeMetricFamily(
            "berth_model_requests_waiting", "Requests that wait for any replica of a model.", labels=["model"]
        )
        oldest = GaugeMetricFamily(
            "berth_model_oldest_wait_seconds",
            "How long the request that waits longest for a model has waited.",
            labels=["model"],
        )
        now = time.monotonic()
        counts = Counter(model.status for model in self._fleet.models)
        for each in _MODEL_STATUS:
            status.add_metric([each], counts[each])
        for model in self._fleet.models:
            if not model.replicas and not model.queue:
                continue  # catalogs can be long
            since = model.queue.since
            waiting.add_metric([model.name], len(model.queue))
            oldest.add_metric([model.name], 0.0 if since is None else max(0.0, now - since))
        return (status, waiting, oldest)

    def _memory(self, instances: list[Instance]) -> Iterable[Metric]:
        size = GaugeMetricFamily(
            "berth_device_memory_size_bytes",
            "Total memory of the host (or its control group's limit) and of each GPU.",
            labels=["device", "name"],
        )
        free = GaugeMetricFamily(
            "berth_device_memory_free_bytes",
            "Available memory of the host and of each GPU.",
            labels=["device", "name"],
        )
        held = GaugeMetricFamily(
            "berth_instance_memory_bytes",
            "Memory that an instance's processes hold on a device.",
            labels=["instance", "model", "device"],
        )
        for device in self.memory.devices:
            names = [_device_label(device.device), device.name]
            size.add_metric(names, device.total_bytes)
            free.add_metric(names, device.free_bytes)
        holdings = self.memory.held or {}
        for one in instances:
            for device_id, num_bytes in holdings.get(one.instance_id, {}).items():
                held.add_metric([one.instance_id, model_label(one), _device_label(device_id)], num_bytes)
        return (size, free, held)


def _device_label(device: Device) -> str:
    return "host" if device == HOST else device
