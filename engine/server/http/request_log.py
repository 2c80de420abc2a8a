"""A line in the log for each request, and one of throughput while there is work; never a word of a prompt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from engine.core.types import EngineStats
from engine.server.http.request_ids import choose_request_id

_requests_log = logging.getLogger("engine.requests")
_stats_log = logging.getLogger("engine.stats")

STATS_INTERVAL_S = 10.0


@dataclass(slots=True)
class RequestRecord:
    """What is told of one HTTP request; whoever works for it adds what it knows."""

    what: str  # "POST /v1/completions"
    started: float = field(default_factory=time.monotonic)
    status: int | None = None  # None: its client left before there was one
    work: str = ""  # tokens, times, reasons
    is_told: bool = False

    def add(
        self,
        *,
        prompt_tokens: int,
        cached_tokens: int = 0,
        output_tokens: int = 0,
        first_token_s: float | None = None,
        reasons: Sequence[str],
    ) -> None:
        """Of its sequences, when all have ended. `reasons`: why each did."""
        ttft = "" if first_token_s is None else f" ttft={first_token_s:.3f}s"
        self.work = (
            f" prompt={prompt_tokens} cached={cached_tokens} output={output_tokens}{ttft} "
            f"finish={','.join(dict.fromkeys(reasons)) or '-'}"
        )
        if self.is_told:  # the answer was given first, and made in the background
            self.tell()

    def tell(self) -> None:
        self.is_told = True
        _requests_log.info(
            '"%s" %s id=%s%s time=%.3fs',
            self.what,
            "-" if self.status is None else self.status,
            choose_request_id(None),
            self.work,
            time.monotonic() - self.started,
        )


_current: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def begin_record(what: str) -> RequestRecord:
    """For this task, and those that it will start."""
    record = RequestRecord(what)
    _current.set(record)
    return record


def current_record() -> RequestRecord | None:
    """None where nothing is to be told."""
    return _current.get()


async def log_throughput(
    read_stats: Callable[[], EngineStats], *, generates: bool, interval_s: float = STATS_INTERVAL_S
) -> None:
    """Until cancelled: a line after each interval in which there was work."""
    before, then = read_stats(), time.monotonic()
    while True:
        await asyncio.sleep(interval_s)
        stats, now = read_stats(), time.monotonic()
        if line := describe_throughput(before, stats, now - then, generates=generates):
            _stats_log.info("%s", line)
        before, then = stats, now


def describe_throughput(
    before: EngineStats, stats: EngineStats, seconds: float, *, generates: bool
) -> str | None:
    """What vLLM says every ten seconds; None where there was nothing to do."""
    prompt = stats.prompt_tokens - before.prompt_tokens
    generated = stats.generation_tokens - before.generation_tokens
    queries = stats.prefix_cache_queries - before.prefix_cache_queries
    hits = stats.prefix_cache_hits - before.prefix_cache_hits
    if not (prompt or generated or stats.num_requests_running or stats.num_requests_waiting):
        return None
    parts = [
        f"Avg prompt throughput: {prompt / seconds:.1f} tokens/s",
        f"Avg generation throughput: {generated / seconds:.1f} tokens/s",
        f"Running: {stats.num_requests_running} reqs",
        f"Waiting: {stats.num_requests_waiting} reqs",
        f"KV cache usage: {stats.kv_cache_usage:.1%}",
        f"Prefix cache hit rate: {hits / queries if queries else 0.0:.1%}",
    ]
    return ", ".join(parts if generates else [parts[0], *parts[2:4]])
