"""`GET /metrics`: the metrics of Berth and its engines on one page, and targets for single engines."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.control.deps import Manager
from api.control.error_response import error_response
from api.control.exposition import CONTENT_TYPE, Exposition
from api.control.scrape import EngineTarget, Scrape, ScrapeFailure, scrape_engines
from api.gateway.response_cache import ResponseCache
from api.http.errors import ApiError, api_error
from instance_manager.errors import InstanceNotRunning
from instance_manager.fleet.fleet import Fleet
from instance_manager.memory.gpu import GpuDriver
from instance_manager.metrics.lifecycle import LifecycleMetrics
from instance_manager.metrics.proxy import ProxyMetrics
from instance_manager.metrics.state import StateMetrics, read_memory

router = APIRouter(tags=["operations"])


class MetricsPage:
    """Collects metrics on the event loop, which owns them, and renders the page in a thread."""

    def __init__(
        self,
        fleet: Fleet,
        proxy: ProxyMetrics,
        lifecycle: LifecycleMetrics,
        driver: GpuDriver,
        *,
        version: str,
        cache: ResponseCache | None = None,
    ) -> None:
        """`cache`: None = disabled, its metrics are 0."""
        self._fleet = fleet
        self._state = StateMetrics(fleet)
        self._collectors: tuple[Collector, ...] = (proxy, lifecycle, self._state)
        self._driver = driver
        self._version = version
        self._process = ProcessCollector(registry=None)
        self._failures: Counter[ScrapeFailure] = Counter()
        self._cache = cache

    async def render(self, *, with_engines: bool) -> str:
        """Render the whole page."""
        targets = self.targets() if with_engines else []
        leaders, containers = self._state.leaders(), self._state.containers()
        memory, scrapes = await asyncio.gather(
            asyncio.to_thread(read_memory, leaders, containers, self._driver), scrape_engines(targets)
        )
        self._state.memory = memory
        self._failures.update(scrape.failure for scrape in scrapes if scrape.failure is not None)
        return await asyncio.to_thread(self._write, self._collect(scrapes), scrapes)

    def empty_families(self) -> list[Metric]:
        """All of Berth's own metrics, as if there were no engine."""
        return [*self._collect(()), _lines_left_out(())]

    def targets(self) -> list[EngineTarget]:
        """The instances that accept requests."""
        found = (EngineTarget.of(instance) for instance in self._fleet.manager.list())
        return [target for target in found if target is not None]

    def _collect(self, scrapes: Sequence[Scrape]) -> list[Metric]:
        families = [family for collector in self._collectors for family in collector.collect()]
        return [*families, *self._about_cache(), *self._about_engines(scrapes)]

    def _about_cache(self) -> Iterable[Metric]:
        cache = self._cache
        hits, misses, size = (cache.num_hits, cache.num_misses, cache.num_bytes) if cache else (0, 0, 0)
        return (
            CounterMetricFamily("berth_response_cache_hits", "Requests answered from the cache.", hits),
            CounterMetricFamily(
                "berth_response_cache_misses", "Cacheable requests not in the cache.", misses
            ),
            GaugeMetricFamily("berth_response_cache_bytes", "Size of the response cache.", size),
        )

    def _about_engines(self, scrapes: Sequence[Scrape]) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "berth_build_info", "Constant 1, labelled with Berth's version.", labels=["version"]
        )
        info.add_metric([self._version], 1)
        success = GaugeMetricFamily(
            "berth_engine_scrape_success",
            "1 if an engine's own metrics are on this page, 0 if they could not be scraped.",
            labels=["instance", "model"],
        )
        seconds = GaugeMetricFamily(
            "berth_engine_scrape_seconds", "Time to scrape an engine's metrics.", labels=["instance", "model"]
        )
        failures = CounterMetricFamily(
            "berth_engine_scrape_failures",
            "Engines whose metrics could not be scraped, by reason.",
            labels=["reason"],
        )
        for scrape in scrapes:
            names = list(scrape.target.labels.values())
            success.add_metric(names, float(scrape.failure is None))
            seconds.add_metric(names, scrape.seconds)
        for reason in ScrapeFailure:
            failures.add_metric([reason.value], self._failures[reason])
        return (info, success, seconds, failures)

    def _write(self, families: Sequence[Metric], scrapes: Sequence[Scrape]) -> str:
        page = Exposition()
        page.add_own(_text_of([*families, *self._process.collect()]))
        left_out = [
            (scrape.target, page.add(scrape.text, scrape.target.labels))
            for scrape in scrapes
            if scrape.failure is None
        ]
        page.add_own(_text_of([_lines_left_out(left_out)]))
        return page.render()


def _lines_left_out(left_out: Iterable[tuple[EngineTarget, int]]) -> Metric:
    family = GaugeMetricFamily(
        "berth_engine_scrape_lines_left_out",
        "Lines of an engine's metrics that were invalid or used reserved names.",
        labels=["instance", "model"],
    )
    for target, number in left_out:
        family.add_metric(list(target.labels.values()), number)
    return family


class _Families(Collector):
    """Collected metrics as a collector, as `generate_latest` takes a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _text_of(families: Iterable[Metric]) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    return generate_latest(registry).decode()


def _page(request: Request) -> MetricsPage:
    page: MetricsPage = request.app.state.metrics_page
    return page


Page = Annotated[MetricsPage, Depends(_page)]


@router.get("/metrics", summary="Prometheus metrics of Berth and all running engines")
async def metrics(page: Page, engines: bool = True) -> Response:
    return Response(await page.render(with_engines=engines), media_type=CONTENT_TYPE)


@router.get("/metrics/targets", summary="Running engines, for Prometheus's HTTP service discovery")
async def targets(request: Request, page: Page) -> list[dict[str, Any]]:
    return [
        {
            "targets": [_own_address(request)],
            "labels": {
                **target.labels,
                "__scheme__": request.url.scheme,
                "__metrics_path__": f"/metrics/instances/{target.instance_id}",
            },
        }
        for target in page.targets()
    ]


@router.get(
    "/metrics/instances/{instance_id}",
    summary="One engine's own metrics; neither wakes it nor resets its idle time",
)
async def instance_metrics(instance_id: str, manager: Manager) -> Response:
    instance = manager.get(instance_id)
    target = EngineTarget.of(instance)
    if target is None:
        raise InstanceNotRunning(
            f"instance {instance_id!r} is {instance.state}; only a running one has metrics"
        )
    (scrape,) = await scrape_engines([target])
    if scrape.failure is not None:
        return error_response(_no_metrics(instance_id, scrape.failure))
    page = Exposition()
    await asyncio.to_thread(page.add, scrape.text, {})
    return Response(page.render(), media_type=CONTENT_TYPE)


def _no_metrics(instance_id: str, failure: ScrapeFailure) -> ApiError:
    status = 504 if failure is ScrapeFailure.TIMEOUT else 502
    message = f"the metrics of instance {instance_id!r} could not be scraped: {failure.value}"
    return api_error(status, message, "server_error", code="no_engine_metrics")


def _own_address(request: Request) -> str:
    """The host and port by which the client has reached us."""
    port = request.url.port or (443 if request.url.scheme == "https" else 80)
    host = request.url.hostname or "localhost"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
