"""Prometheus metrics under vLLM's names, so that its dashboards work. Uses its own registry, no globals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.core.types import EngineStats, RequestTimings

_LATENCY_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_NEXT_TOKEN_S = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)

_GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "vllm:num_requests_running": (
        "Number of running requests.",
        lambda stats: stats.num_requests_running,
    ),
    "vllm:num_requests_waiting": (
        "Number of waiting requests.",
        lambda stats: stats.num_requests_waiting,
    ),
    "vllm:kv_cache_usage_perc": (
        "Fraction of KV-cache blocks in use (0 to 1).",
        lambda stats: stats.kv_cache_usage,
    ),
}
_COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "vllm:prefix_cache_queries": (
        "Prompt tokens looked up in the prefix cache.",
        lambda stats: stats.prefix_cache_queries,
    ),
    "vllm:prefix_cache_hits": (
        "Prompt tokens found in the prefix cache.",
        lambda stats: stats.prefix_cache_hits,
    ),
    "vllm:prompt_tokens": ("Prompt tokens processed.", lambda stats: stats.prompt_tokens),
    "vllm:generation_tokens": ("Tokens generated.", lambda stats: stats.generation_tokens),
    "vllm:num_preemptions": (
        "Sequences preempted to free KV-cache blocks.",
        lambda stats: stats.num_preemptions,
    ),
}


# vLLM's label → the sleep level at which its value is 1.
_SLEEP_STATES = {"awake": 0, "weights_offloaded": 1, "discard_all": 2}


class Metrics:
    """Requests update their metrics as they run; the engine's statistics are read at each scrape."""

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, model_name: str, read_stats: Callable[[], EngineStats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(model_name, read_stats))
        self._model_name = model_name
        self._prompt_tokens: Histogram | None = None  # None until the model's limit is known
        self._generated: Histogram | None = None
        histogram = self._histogram
        self._first_token = histogram(
            "time_to_first_token_seconds", "Time from arrival to the first token.", _FIRST_TOKEN_S
        )
        self._next_token = histogram("inter_token_latency_seconds", "Time between two tokens.", _NEXT_TOKEN_S)
        self._end_to_end = histogram(
            "e2e_request_latency_seconds", "Time from arrival to the end of the request.", _LATENCY_S
        )
        self._queue = histogram(
            "request_queue_time_seconds", "Time from arrival to the first step.", _LATENCY_S
        )
        self._prefill = histogram(
            "request_prefill_time_seconds", "Time from the first step to the first token.", _LATENCY_S
        )
        self._decode = histogram(
            "request_decode_time_seconds", "Time from the first token to the end.", _LATENCY_S
        )
        self._success = Counter(
            "vllm:request_success",
            "Finished requests, by reason.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )

    def expect_lengths(self, max_model_len: int) -> None:
        """Start recording request lengths; the buckets depend on the model's limit. Call once."""
        buckets = _1_2_5(max_model_len)
        self._prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens per request.", buckets)
        self._generated = self._histogram(
            "request_generation_tokens", "Generated tokens per request.", buckets
        )

    def observe_lengths(self, *, prompt: int, generated: int) -> None:
        """Record the lengths of a finished request, in tokens."""
        _observe(self._prompt_tokens, prompt)
        _observe(self._generated, generated)

    def observe_first_token(self, timings: RequestTimings) -> None:
        _observe(self._first_token, timings.time_to_first_token_s)
        _observe(self._queue, timings.queue_s)
        _observe(self._prefill, timings.prefill_s)

    def observe_next_tokens(self, seconds: float, num_tokens: int) -> None:
        """`num_tokens` arrived together, `seconds` after the previous ones."""
        for _ in range(num_tokens):
            self._next_token.observe(seconds / num_tokens)

    def observe_end(self, reason: str, *, end_to_end_s: float, decode_s: float | None) -> None:
        self._success.labels(self._model_name, reason).inc()
        self._end_to_end.observe(end_to_end_s)
        _observe(self._decode, decode_s)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(
            f"vllm:{name}", help_text, ["model_name"], buckets=buckets, registry=self._registry
        )
        return family.labels(self._model_name)


def _observe(histogram: Histogram | None, value: float | None) -> None:
    if histogram is not None and value is not None:
        histogram.observe(value)


def _1_2_5(limit: int) -> list[int]:
    """vLLM's buckets: 1, 2, 5, 10, 20, 50 … up to the limit."""
    steps = (step * 10**power for power in range(len(str(limit))) for step in (1, 2, 5))
    return [step for step in steps if step <= limit]


class _EngineCollector(Collector):
    def __init__(self, model_name: str, read_stats: Callable[[], EngineStats]) -> None:
        self._label = [model_name]
        self._read_stats = read_stats

    def collect(self) -> Iterator[Metric]:
        stats = self._read_stats()
        for name, (help_text, read) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, help_text, labels=["model_name"])
            gauge.add_metric(self._label, read(stats))
            yield gauge
        sleep_state = GaugeMetricFamily(
            "vllm:engine_sleep_state",
            "1 for the current state: awake, weights_offloaded (level 1) or discard_all (level 2).",
            labels=["model_name", "sleep_state"],
        )
        for state, level in _SLEEP_STATES.items():
            sleep_state.add_metric([*self._label, state], float(stats.sleep_level == level))
        yield sleep_state
        if stats.cache_config:
            yield self._cache_config_info(stats.cache_config)
        for name, (help_text, read) in _COUNTERS.items():
            counter = CounterMetricFamily(name, help_text, labels=["model_name"])
            counter.add_metric(self._label, read(stats))
            yield counter

    def _cache_config_info(self, described: Mapping[str, str]) -> Metric:
        labels = {"model_name": self._label[0], "engine": "0", **described}
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "KV-cache configuration, as labels.", labels=list(labels)
        )
        info.add_metric(list(labels.values()), 1)
        return info
