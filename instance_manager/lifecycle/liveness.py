"""Liveness: a running engine must answer its health probe and make progress.

It fails after three failed probes in a row, the second and third soon after the first. An engine that answers
but is stuck is detected by its own metrics: it reports requests but takes no step.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from instance_manager.backends import Backend
from instance_manager.config import LivenessRules
from instance_manager.lifecycle.bounded_fetch import EngineResponse, fetch

_MAX_FAILED_PROBES = 3
_RETRY_S = 1.0  # after a failed probe, or sooner if probes are more frequent
# Berth itself lacks resources to probe: this says nothing about the engine.
_LOCAL_ERRORS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EAGAIN}
)
_MAX_HEALTH_BYTES = 64 * 1024
_MAX_METRICS_BYTES = 1024 * 1024  # vLLM's page has about 100 KB


class LivenessFailed(Exception):
    """The engine must be ended; the message says what it failed to do."""


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """Where to send probes."""

    url: str  # of the engine, without a path
    api_key: str
    health_path: str
    backend: Backend  # of its kind: which metrics show that it makes progress


async def watch_liveness(
    client: httpx.AsyncClient,
    target: ProbeTarget,
    rules: LivenessRules,
    clock: Callable[[], float],
) -> None:
    """Run until the engine fails. Raises LivenessFailed."""
    failed_probes = 0
    steps: bytes | None = None
    progressed_at = clock()
    while True:
        await asyncio.sleep(min(_RETRY_S, rules.interval_s) if failed_probes else rules.interval_s)
        problem = await _probe(client, target, rules.timeout_s)
        if problem is not None:
            failed_probes += 1
            if failed_probes >= _MAX_FAILED_PROBES:
                raise LivenessFailed(f"{failed_probes} health probes in a row failed, the last: {problem}")
            continue
        failed_probes = 0
        if not rules.stall_s:
            continue
        before, steps = steps, await _step_counters(client, target, rules.timeout_s)
        if steps is None or steps != before:
            progressed_at = clock()
        elif clock() - progressed_at >= rules.stall_s:
            raise LivenessFailed(
                f"it answers {target.url}{target.health_path}, but has taken no step for "
                f"{clock() - progressed_at:.0f} s while requests are pending"
            )


async def _probe(client: httpx.AsyncClient, target: ProbeTarget, timeout_s: float) -> str | None:
    """The problem; None = healthy."""
    url = f"{target.url}{target.health_path}"
    try:
        status = (await _get(client, target, target.health_path, timeout_s, _MAX_HEALTH_BYTES)).status
    except httpx.TimeoutException:
        return f"{url} did not answer within {timeout_s:g} s"
    except httpx.HTTPError as error:
        if _is_local_error(error):
            return None
        return f"{url}: {error or type(error).__name__}"
    return None if status == httpx.codes.OK else f"{url} answered {status}"


def _is_local_error(error: BaseException) -> bool:
    """Whether the error or one of its causes comes from Berth's own lack of resources."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _LOCAL_ERRORS:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


async def _step_counters(client: httpx.AsyncClient, target: ProbeTarget, timeout_s: float) -> bytes | None:
    """The counters as printed; None if the engine has none, or no pending requests."""
    backend = target.backend
    if backend.progress is None:
        return None
    try:
        page = (await _get(client, target, backend.metrics_path, timeout_s, _MAX_METRICS_BYTES)).body
    except httpx.HTTPError:
        return None
    return backend.progress.read(page)


async def _get(
    client: httpx.AsyncClient, target: ProbeTarget, path: str, timeout_s: float, max_bytes: int
) -> EngineResponse:
    headers = {"Authorization": f"Bearer {target.api_key}"}
    return await fetch(
        client, "GET", target.url + path, headers=headers, timeout_s=timeout_s, max_bytes=max_bytes
    )
