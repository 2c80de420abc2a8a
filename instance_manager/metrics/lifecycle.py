"""Counts starts, failures, loads, sleeps and evictions of instances, from events.

Labels are bounded: classes and actions come from enums, and beyond some hundred models all further ones
count as "other".
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from instance_manager.metrics.proxy import Histogram
from instance_manager.types import Event, InstanceState

_LOAD_BOUNDS_S = (0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600)
_WAKE_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_MAX_MODELS = 500
_OTHER = "other"


class _ModelCounts:
    """Counts for all instances of one model."""

    __slots__ = ("evictions", "expirations", "failures", "load_s", "restarts", "sleeps", "starts", "wake_s")

    def __init__(self) -> None:
        self.starts = 0
        self.restarts = 0
        self.sleeps = 0
        self.expirations = 0
        self.failures: Counter[str] = Counter()  # by class
        self.evictions: Counter[str] = Counter()  # by action
        self.load_s = Histogram(_LOAD_BOUNDS_S)
        self.wake_s = Histogram(_WAKE_BOUNDS_S)


class LifecycleMetrics(Collector):
    """Add `on_event` to the event log as a listener."""

    def __init__(
        self,
        model_of: Callable[[str], str | None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`model_of`: the name by which clients know an instance's model, if there is one."""
        self._model_of = model_of
        self._clock = clock
        self._counts: dict[str, _ModelCounts] = {}  # by model
        self._models: dict[str, str] = {}  # by instance
        self._since: dict[str, float] = {}  # by instance: when its start or wake-up began
        self._spawned: set[str] = set()  # instances that have had a process

    def on_event(self, event: Event) -> None:
        instance_id = event.instance_id
        if event.type == "instance.state":
            self._models[instance_id] = self._model_of(instance_id) or str(event.data["model_name"])
            self._on_state(instance_id, event)
        elif event.type == "instance.evicted":
            self._counts_of(instance_id).evictions[str(event.data["action"])] += 1
        elif event.type == "instance.expired":
            self._counts_of(instance_id).expirations += 1
        elif event.type == "instance.deleted":
            self._models.pop(instance_id, None)
            self._since.pop(instance_id, None)
            self._spawned.discard(instance_id)

    def _on_state(self, instance_id: str, event: Event) -> None:
        state, previous = event.data["status"], event.data["previous"]
        if state == InstanceState.STARTING:
            if previous != InstanceState.HEALTH_CHECKING:  # else the same start continues on another port
                self._since[instance_id] = self._clock()
        elif state == InstanceState.HEALTH_CHECKING:
            counts = self._counts_of(instance_id)
            counts.starts += 1
            counts.restarts += instance_id in self._spawned
            self._spawned.add(instance_id)
        elif state == InstanceState.WAKING:
            self._since[instance_id] = self._clock()
        elif state == InstanceState.RUNNING:
            if (since := self._since.pop(instance_id, None)) is not None:
                counts = self._counts_of(instance_id)
                histogram = counts.wake_s if previous == InstanceState.WAKING else counts.load_s
                histogram.observe(self._clock() - since)
        elif state == InstanceState.SLEEPING:
            self._counts_of(instance_id).sleeps += 1
        elif state == InstanceState.FAILED:
            self._counts_of(instance_id).failures[str(event.data.get("error", {}).get("class", _OTHER))] += 1

    def _counts_of(self, instance_id: str) -> _ModelCounts:
        model = self._models.get(instance_id, "")
        if model not in self._counts and len(self._counts) >= _MAX_MODELS:
            model = _OTHER
        return self._counts.setdefault(model, _ModelCounts())

    def collect(self) -> Iterable[Metric]:
        label = ["model"]
        starts = CounterMetricFamily("berth_instance_starts", "Engine processes started.", labels=label)
        restarts = CounterMetricFamily(
            "berth_instance_restarts",
            "Engine processes started for an instance that had one before.",
            labels=label,
        )
        failures = CounterMetricFamily(
            "berth_instance_failures", "Instances that failed, by failure class.", labels=[*label, "class"]
        )
        evictions = CounterMetricFamily(
            "berth_evictions",
            "Instances stopped or put to sleep to free memory or a slot.",
            labels=[*label, "action"],
        )
        expirations = CounterMetricFamily(
            "berth_expirations", "Instances stopped or put to sleep after their idle time-out.", labels=label
        )
        sleeps = CounterMetricFamily("berth_sleeps", "Instances put to sleep.", labels=label)
        load_s = HistogramMetricFamily(
            "berth_instance_load_seconds",
            "Time from the start request until the engine is healthy.",
            labels=label,
        )
        wake_s = HistogramMetricFamily(
            "berth_wake_seconds", "Time from the wake request until the engine serves again.", labels=label
        )
        for model, counts in self._counts.items():
            starts.add_metric([model], counts.starts)
            restarts.add_metric([model], counts.restarts)
            sleeps.add_metric([model], counts.sleeps)
            expirations.add_metric([model], counts.expirations)
            for failure_class, number in counts.failures.items():
                failures.add_metric([model, failure_class], number)
            for action, number in counts.evictions.items():
                evictions.add_metric([model, action], number)
            load_s.add_metric([model], counts.load_s.cumulated(), counts.load_s.total)
            wake_s.add_metric([model], counts.wake_s.cumulated(), counts.wake_s.total)
        return (starts, restarts, failures, load_s, sleeps, wake_s, evictions, expirations)
