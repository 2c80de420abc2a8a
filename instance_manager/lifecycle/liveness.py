"""Whether a running engine still lives: it answers its health probe, and its work goes on.

Three probes in a row have to fail, the second and third soon after the first. An engine that answers but
stands still is found by its own metrics: it says that it has requests, and takes no step.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from instance_manager.config import LivenessRules
from instance_manager.lifecycle.bounded_fetch import Answer, fetch

_STRIKES = 3
_AGAIN_S = 1.0  # after a strike, or sooner where probes are more frequent
# It is we who can't ask then: no sign against an engine.
_WANTS_OF_OURS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EAGAIN}
)
_MAX_HEALTH_BYTES = 64 * 1024
_MAX_METRICS_BYTES = 1024 * 1024  # a vLLM prints some 100 KB
# Counters that grow with each step of an engine: what it has read, written, or iterated over.
_WORK = re.compile(
    rb"^(?:vllm:num_requests_(?:running|waiting)|llamacpp:requests_processing)(?:\{[^}\n]*\})? (\S{1,64})",
    re.MULTILINE,
)
_STEPS = re.compile(
    rb"^(?:vllm:(?:prompt_tokens_total|generation_tokens_total|iteration_tokens_total_count)"
    rb"|llamacpp:(?:prompt_tokens_total|tokens_predicted_total))(?:\{[^}\n]*\})? (\S{1,64})",
    re.MULTILINE,
)


class LivenessFailed(Exception):
    """It is to be ended; the message says what it did not do."""


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """Where to ask."""

    url: str  # of the engine, without a path
    api_key: str
    health_path: str


async def watch_liveness(
    client: httpx.AsyncClient,
    vitals: ProbeTarget,
    rules: LivenessRules,
    clock: Callable[[], float],
) -> None:
    """Go on as long as it lives. Raises LivenessFailed."""
    strikes = 0
    steps: bytes | None = None
    moved_at = clock()
    while True:
        await asyncio.sleep(min(_AGAIN_S, rules.interval_s) if strikes else rules.interval_s)
        problem = await _probe(client, vitals, rules.timeout_s)
        if problem is not None:
            strikes += 1
            if strikes >= _STRIKES:
                raise LivenessFailed(f"{strikes} health probes in a row failed, the last: {problem}")
            continue
        strikes = 0
        if not rules.stall_s:
            continue
        before, steps = steps, await _steps(client, vitals, rules.timeout_s)
        if steps is None or steps != before:
            moved_at = clock()
        elif clock() - moved_at >= rules.stall_s:
            raise LivenessFailed(
                f"it answers {vitals.url}{vitals.health_path}, but has taken no step for "
                f"{clock() - moved_at:.0f} s although it has requests"
            )


async def _probe(client: httpx.AsyncClient, vitals: ProbeTarget, timeout_s: float) -> str | None:
    """What is wrong; None = it is well."""
    asked = f"{vitals.url}{vitals.health_path}"
    try:
        status = (await _get(client, vitals, vitals.health_path, timeout_s, _MAX_HEALTH_BYTES)).status
    except httpx.TimeoutException:
        return f"{asked} did not answer within {timeout_s:g} s"
    except httpx.HTTPError as error:
        if _is_want_of_ours(error):
            return None
        return f"{asked}: {error or type(error).__name__}"
    return None if status == httpx.codes.OK else f"{asked} answered {status}"


def _is_want_of_ours(error: BaseException) -> bool:
    """Whether, of what led to the error, something is no doing of the engine."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _WANTS_OF_OURS:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


async def _steps(client: httpx.AsyncClient, vitals: ProbeTarget, timeout_s: float) -> bytes | None:
    """Its counters as they are written; None where it has none, or no work."""
    try:
        page = (await _get(client, vitals, "/metrics", timeout_s, _MAX_METRICS_BYTES)).body
    except httpx.HTTPError:
        return None
    has_work = any(map(_is_positive, _WORK.findall(page)))
    return b" ".join(_STEPS.findall(page)) or None if has_work else None


def _is_positive(value: bytes) -> bool:
    try:
        return float(value) > 0
    except ValueError:
        return False


async def _get(
    client: httpx.AsyncClient, vitals: ProbeTarget, path: str, timeout_s: float, max_bytes: int
) -> Answer:
    headers = {"Authorization": f"Bearer {vitals.api_key}"}
    return await fetch(
        client, "GET", vitals.url + path, headers=headers, timeout_s=timeout_s, max_bytes=max_bytes
    )
