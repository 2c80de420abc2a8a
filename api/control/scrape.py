"""Fetches running engines' own metrics, concurrently and within a time-out.

Without a lease: scraping neither wakes an engine nor keeps it from expiring.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import httpx

from instance_manager.backends import backend_of
from instance_manager.lifecycle.bounded_fetch import ResponseTooLong, engine_client, fetch
from instance_manager.lifecycle.instance import Instance
from instance_manager.metrics.state import model_label
from instance_manager.types import Endpoint

TIMEOUT_S = 1.0
MAX_BYTES = 4 * 2**20  # vLLM's page has some 100 KB


class ScrapeFailure(StrEnum):
    """Why an engine's metrics are missing."""

    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"  # no connection, or it broke
    STATUS = "status"  # not 200: not every server has metrics
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """A running instance and its engine's endpoint."""

    instance_id: str
    model: str
    endpoint: Endpoint
    path: str = "/metrics"

    @classmethod
    def of(cls, instance: Instance) -> EngineTarget | None:
        """None unless the instance accepts requests."""
        if (endpoint := instance.gate.endpoint) is None:
            return None
        path = backend_of(instance.spec.engine).metrics_path
        return cls(instance.instance_id, model_label(instance), endpoint, path)

    @property
    def labels(self) -> dict[str, str]:
        return {"instance": self.instance_id, "model": self.model}


@dataclass(frozen=True, slots=True)
class Scrape:
    """The result of one fetch: a page, or the reason of the failure."""

    target: EngineTarget
    seconds: float
    text: str = ""
    failure: ScrapeFailure | None = None


class _Failed(Exception):
    def __init__(self, failure: ScrapeFailure) -> None:
        self.failure = failure


async def scrape_engines(
    targets: Sequence[EngineTarget], *, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_BYTES
) -> list[Scrape]:
    """Fetch the metrics of all targets concurrently; takes `timeout_s` at most."""
    if not targets:
        return []
    async with engine_client(timeout_s) as client:
        return await asyncio.gather(*(_scrape(client, target, timeout_s, max_bytes) for target in targets))


async def _scrape(client: httpx.AsyncClient, target: EngineTarget, timeout_s: float, limit: int) -> Scrape:
    started = time.perf_counter()
    text, failure = "", None
    try:
        text = await _fetch(client, target, timeout_s, limit)
    except _Failed as failed:
        failure = failed.failure
    except ResponseTooLong:
        failure = ScrapeFailure.TOO_LARGE
    except httpx.TimeoutException:
        failure = ScrapeFailure.TIMEOUT
    except (httpx.HTTPError, httpx.InvalidURL):
        failure = ScrapeFailure.UNREACHABLE
    return Scrape(target, time.perf_counter() - started, text, failure)


async def _fetch(client: httpx.AsyncClient, target: EngineTarget, timeout_s: float, limit: int) -> str:
    """Raises _Failed or httpx's errors."""
    endpoint = target.endpoint
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    headers = {"Authorization": f"Bearer {endpoint.api_key}", "Accept": "text/plain;version=0.0.4"}
    url = f"http://{host}:{endpoint.port}{target.path}"
    answer = await fetch(client, "GET", url, headers=headers, timeout_s=timeout_s, max_bytes=limit)
    if not answer.is_ok:
        raise _Failed(ScrapeFailure.STATUS)
    return answer.body.decode("utf-8", "replace")
