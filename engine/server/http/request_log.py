"""Logs one line per request, and throughput while there is work. Prompts are never logged."""

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
    """The log line of one HTTP request, completed as the request is processed."""

    request_line: str  # "POST /v1/completions"
    started: float = field(default_factory=time.monotonic)
    status: int | None = None  # None: the client disconnected first
    work: str = ""  # tokens, times, reasons
    is_logged: bool = False

    def add(
        self,
        *,
        prompt_tokens: int,
        cached_tokens: int = 0,
        output_tokens: int = 0,
        first_token_s: float | None = None,
        reasons: Sequence[str],
    ) -> None:
        """Add the totals of its sequences, once all have ended. `reasons`: their finish reasons."""
        ttft = "" if first_token_s is None else f" ttft={first_token_s:.3f}s"
        self.work = (
            f" prompt={prompt_tokens} cached={cached_tokens} output={output_tokens}{ttft} "
            f"finish={','.join(dict.fromkeys(reasons)) or '-'}"
        )
        if self.is_logged:  # a background request was answered before it ended
            self.log()

    def log(self) -> None:
        self.is_logged = True
        _requests_log.info(
            '"%s" %s id=%s%s time=%.3fs',
            self.request_line,
            "-" if self.status is None else self.status,
            choose_request_id(None),
            self.work,
            time.monotonic() - self.started,
        )


_current: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def begin_record(request_line: str) -> RequestRecord:
    """Start a record for this task and its children."""
    record = RequestRecord(request_line)
    _current.set(record)
    return record


def current_record() -> RequestRecord | None:
    """None if the request is not logged."""
    return _current.get()


async def log_throughput(
    read_stats: Callable[[], EngineStats], *, generates: bool, interval_s: float = STATS_INTERVAL_S
) -> None:
    """Log a line after each interval with work, until cancelled."""
    previous, previous_time = read_stats(), time.monotonic()
    while True:
        await asyncio.sleep(interval_s)
        stats, now = read_stats(), time.monotonic()
        if line := describe_throughput(previous, stats, now - previous_time, generates=generates):
            _stats_log.info("%s", line)
        previous, previous_time = stats, now


def describe_throughput(
    previous: EngineStats, stats: EngineStats, seconds: float, *, generates: bool
) -> str | None:
    """The same line as vLLM logs every ten seconds; None if there was no work."""
    prompt = stats.prompt_tokens - previous.prompt_tokens
    generated = stats.generation_tokens - previous.generation_tokens
    queries = stats.prefix_cache_queries - previous.prefix_cache_queries
    hits = stats.prefix_cache_hits - previous.prefix_cache_hits
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
