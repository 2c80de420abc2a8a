"""Counts the proxy's traffic: plain ints and lists, rendered for Prometheus on request.

One event loop writes and reads, so nothing here locks. Labels are bounded: `forget` removes instances,
methods outside a fixed list become "other", and requests that no instance served have an empty label.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

# Upper bounds in seconds: a request lasts from a millisecond (/health) to many minutes (long streams).
_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

OnUsage = Callable[[str, str, int, int, int], None]

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "WEBSOCKET"})


class Histogram:
    """Counts per bucket, with a running sum; `counts` has one entry more than `bounds`."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = _BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulated(self) -> list[tuple[str, float]]:
        """Pairs of upper bound and cumulative count, in Prometheus's format."""
        pairs = []
        running = 0
        for bound, number in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += number
            pairs.append(("+Inf" if bound == float("inf") else str(float(bound)), float(running)))
        return pairs


def _counter(name: str, text: str, *more_labels: str) -> Any:
    metadata = {"family": CounterMetricFamily, "name": name, "help": text, "labels": more_labels}
    return field(default_factory=dict if more_labels else int, metadata=metadata)


def _gauge(name: str, text: str) -> Any:
    return field(default=0, metadata={"family": GaugeMetricFamily, "name": name, "help": text})


def _histogram(name: str, text: str) -> Any:
    metadata = {"family": HistogramMetricFamily, "name": name, "help": text}
    return field(default_factory=Histogram, metadata=metadata)


@dataclass(slots=True)
class InstanceMetrics:
    """Totals of one instance's requests. A field with a name and a help text is a metric on the page."""

    instance_id: str
    model: str
    on_usage: OnUsage
    # By method and status; 499: the client disconnected.
    requests: dict[tuple[str, int], int] = _counter(
        "berth_requests",
        "Requests answered; `instance` is empty for those refused before one was chosen.",
        "method",
        "code",
    )
    in_flight: int = _gauge("berth_requests_in_flight", "Requests being served.")
    bytes_in: int = _counter("berth_request_bytes", "Request body bytes sent to engines.")
    bytes_out: int = _counter("berth_response_bytes", "Response body bytes from engines.")
    # As engines report them, see api/telemetry/token_usage.py.
    prompt_tokens: int = _counter("berth_prompt_tokens", "Prompt tokens, as reported by responses.")
    completion_tokens: int = _counter(
        "berth_completion_tokens",
        "Completion tokens, as reported by responses; for streams that report none, their events.",
    )
    request_s: Histogram = _histogram(
        "berth_request_seconds", "Time from a request's arrival to the last byte of its response."
    )
    first_byte_s: Histogram = _histogram(
        "berth_time_to_first_byte_seconds", "Time from a request's arrival to the head of its response."
    )
    queue_wait_s: Histogram = _histogram(
        "berth_queue_wait_seconds",
        "Time that requests waited in a queue; requests that did not wait are not counted.",
    )

    def count(self, method: str, status: int) -> None:
        key = (method if method in _METHODS else "other", status)
        self.requests[key] = self.requests.get(key, 0) + 1

    def count_tokens(self, key_id: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Tokens that a response reported; `key_id` names the caller's key."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.on_usage(key_id, self.model, 1, prompt_tokens, completion_tokens)


class PeerMetrics(InstanceMetrics):
    """Totals of the requests forwarded to another node, which counts their tokens itself."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        super().__init__(name, "", lambda *_: None)

    def count_tokens(self, key_id: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Does nothing: the key's usage would count twice."""


class ProxyMetrics(Collector):
    """All instances' metrics, and the collector that renders them."""

    def __init__(
        self, model_of: Callable[[str], str | None] = lambda _: None, on_usage: OnUsage = lambda *_: None
    ) -> None:
        """`model_of`: the name by which clients know an instance's model, if there is one.

        `on_usage` is called for each response with tokens: key id, model, 1, prompt and completion tokens.
        """
        self._model_of = model_of
        self._on_usage = on_usage
        self._instances: dict[str, InstanceMetrics] = {}
        self.unserved = InstanceMetrics("", "", on_usage)  # requests that got no lease

    def of(self, instance_id: str, model: str) -> InstanceMetrics:
        """The instance's metrics; the caller holds a lease, so the instance exists."""
        metrics = self._instances.get(instance_id)
        if metrics is None:
            label = self._model_of(instance_id) or model
            metrics = self._instances[instance_id] = InstanceMetrics(instance_id, label, self._on_usage)
        return metrics

    def of_peer(self, name: str) -> InstanceMetrics:
        """Another node's metrics, kept like those of an instance of this name."""
        return self._instances.get(name) or self._instances.setdefault(name, PeerMetrics(name))

    def forget(self, instance_id: str) -> None:
        """Remove a deleted instance's series."""
        self._instances.pop(instance_id, None)

    def _all(self) -> Iterator[tuple[list[str], InstanceMetrics]]:
        for metrics in (*self._instances.values(), self.unserved):
            yield [metrics.instance_id, metrics.model], metrics

    def collect(self) -> Iterable[Metric]:
        for metric in fields(InstanceMetrics):
            if metric.metadata:
                yield self._family(metric.name, **metric.metadata)

    def _family(
        self, attribute: str, *, family: Any, name: str, help: str, labels: Sequence[str] = ()
    ) -> Metric:
        rendered = family(name, help, labels=["instance", "model", *labels])
        for names, metrics in self._all():
            value = getattr(metrics, attribute)
            if isinstance(value, Histogram):
                rendered.add_metric(names, value.cumulated(), value.total)
            elif isinstance(value, dict):
                for key, number in value.items():
                    rendered.add_metric([*names, *map(str, key)], number)
            else:
                rendered.add_metric(names, value)
        return rendered  # type: ignore[no-any-return]
