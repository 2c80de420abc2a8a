"""Metrics of instances' lifecycles, from events as the log publishes them."""

from __future__ import annotations

from itertools import pairwise

from prometheus_client import CollectorRegistry

from instance_manager.events import EventLog
from instance_manager.metrics.lifecycle import LifecycleMetrics


class World:
    """An event log with the metrics as its listener, and a clock moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log = EventLog()
        self.metrics = LifecycleMetrics(clock=lambda: self.now)
        self.log.add_listener(self.metrics.on_event)
        self.registry = CollectorRegistry()
        self.registry.register(self.metrics)

    def state(self, *states: str, instance: str = "one", model: str = "m", **data: object) -> None:
        """From the first of `states` through all others."""
        for previous, status in pairwise(states):
            data_of_event = {"status": status, "previous": previous or None, "model_name": model, **data}
            self.log.publish("instance.state", instance, data_of_event)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def test_a_start_lasts_from_the_request_to_healthy_across_lost_ports() -> None:
    world = World()
    world.state("", "starting")
    world.now = 1.0
    world.state("starting", "health_checking", "starting")  # the port was lost
    world.now = 3.0
    world.state("starting", "health_checking", "running")
    assert world.value("berth_instance_starts_total", model="m") == 2
    assert world.value("berth_instance_restarts_total", model="m") == 1
    assert world.value("berth_instance_load_seconds_sum", model="m") == 3.0
    assert world.value("berth_instance_load_seconds_count", model="m") == 1


def test_sleeping_and_waking() -> None:
    world = World()
    world.state("", "starting", "health_checking", "running", "sleeping")
    world.now = 5.0
    world.state("sleeping", "waking")
    world.now = 7.5
    world.state("waking", "running")
    assert world.value("berth_sleeps_total", model="m") == 1
    assert world.value("berth_wake_seconds_count", model="m") == 1
    assert world.value("berth_wake_seconds_sum", model="m") == 2.5
    assert world.value("berth_instance_load_seconds_count", model="m") == 1


def test_failures_by_class_evictions_by_action_and_expiries() -> None:
    world = World()
    world.state("", "starting", "health_checking")
    world.state("health_checking", "failed", error={"class": "out_of_memory"})
    world.log.publish("instance.evicted", "one", {"action": "sleep1", "for": "other"})
    world.log.publish("instance.expired", "one", {})
    assert world.value("berth_instance_failures_total", model="m", **{"class": "out_of_memory"}) == 1
    assert world.value("berth_evictions_total", model="m", action="sleep1") == 1
    assert world.value("berth_expirations_total", model="m") == 1


def test_a_deleted_instances_name_starts_over_and_its_counts_stay() -> None:
    world = World()
    for _ in range(2):
        world.state("", "starting", "health_checking", "running")
        world.log.publish("instance.deleted", "one")
    assert world.value("berth_instance_starts_total", model="m") == 2
    assert world.value("berth_instance_restarts_total", model="m") == 0


def test_models_beyond_the_limit_share_one_label() -> None:
    world = World()
    for number in range(600):
        name = f"model-{number}"
        world.state("", "starting", "health_checking", instance=name, model=name)
        world.log.publish("instance.deleted", name)
    starts = [sample for family in world.metrics.collect() for sample in family.samples]
    assert len({sample.labels["model"] for sample in starts}) == 501
    assert world.value("berth_instance_starts_total", model="other") == 100
    assert world.value("berth_instance_starts_total", model="model-0") == 1
