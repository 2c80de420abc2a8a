"""A load of streaming requests on an OpenAI-compatible server, and the outcome of each request."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cli.figures import Outcome
from cli.refusals import error_in

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True, slots=True)
class Load:
    """`prompts`: one request each, `concurrency` in parallel; `rate_per_s`: 0 = as soon as possible."""

    path: str
    body: Callable[[str], dict[str, Any]]
    prompts: list[str]
    concurrency: int
    rate_per_s: float = 0.0
    timeout_s: float = 600.0


@dataclass(slots=True)
class Progress:
    """The measurements so far, also available after an interruption."""

    outcomes: list[Outcome] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    ended: float = 0.0  # when the last finished request ended

    @property
    def duration_s(self) -> float:
        return max(0.0, self.ended - self.began)


async def run_load(
    load: Load,
    client_for: Callable[[httpx.Limits, httpx.Timeout], httpx.AsyncClient],
    progress: Progress,
    on_end: Callable[[Progress], None],
    rng: random.Random,
) -> None:
    """Send all requests; each is recorded in `progress` as it ends."""
    import httpx

    limits = httpx.Limits(max_connections=load.concurrency, max_keepalive_connections=load.concurrency)
    free = asyncio.Semaphore(load.concurrency)
    async with client_for(limits, httpx.Timeout(load.timeout_s)) as client, asyncio.TaskGroup() as tasks:
        progress.began = time.perf_counter()
        for prompt in load.prompts:
            if load.rate_per_s:
                await asyncio.sleep(rng.expovariate(load.rate_per_s))
            await free.acquire()
            tasks.create_task(_ask(client, load, prompt, progress, on_end, free))


async def _ask(
    client: httpx.AsyncClient,
    load: Load,
    prompt: str,
    progress: Progress,
    on_end: Callable[[Progress], None],
    free: asyncio.Semaphore,
) -> None:
    try:
        progress.outcomes.append(await _measured(client, load.path, load.body(prompt)))
        progress.ended = time.perf_counter()
        on_end(progress)
    finally:
        free.release()


async def _measured(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Outcome:
    """One request; an error becomes part of its outcome."""
    import httpx

    began = time.perf_counter()
    arrivals: list[float] = []
    usage: Mapping[str, Any] = {}
    error: str | None = None
    try:
        async with client.stream("POST", path, json=body) as response:
            if not response.is_success:
                error = _error_text(response.status_code, await response.aread())
            else:
                async for event in _events(response):
                    if found := error_in(event):
                        error = str(found["message"])
                    usage = event.get("usage") or usage
                    if _has_text(event):
                        arrivals.append(time.perf_counter() - began)
    except httpx.TimeoutException:
        error = "timed out"
    except httpx.TransportError as exc:
        error = f"the connection broke: {exc or type(exc).__name__}"
    except ValueError:
        error = "the response has a piece that isn't JSON"
    return Outcome(
        time.perf_counter() - began,
        tuple(arrivals),
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        error or (None if arrivals or usage else "a response without any text"),
    )


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The stream's events. Raises ValueError."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                event = json.loads(data)
                if isinstance(event, dict):
                    yield event


def _has_text(event: Mapping[str, Any]) -> bool:
    for choice in event.get("choices") or []:
        delta = choice.get("delta") or {}
        if choice.get("text") or any(delta.get(key) for key in ("content", "reasoning_content", "reasoning")):
            return True
    return False


def _error_text(status: int, content: bytes) -> str:
    try:
        found = error_in(json.loads(content))
    except ValueError:
        found = None
    return f"{status}: {found['message'] if found else content[:200].decode('utf-8', 'replace')}"
