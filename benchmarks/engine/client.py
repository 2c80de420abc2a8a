"""A streaming load on `/v1/completions`: exact prompt lengths, greedy, always `max_tokens` output tokens."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass

REQUEST_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Load:
    """One measurement: `streams` at a time, `requests` in total; lengths in tokens."""

    streams: int
    requests: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Timing:
    """One request: seconds to the first token, and on average between tokens."""

    first_s: float
    per_token_s: float


@dataclass(frozen=True)
class Figures:
    """One measurement's result."""

    tokens_per_s: float
    ttft_ms: float  # median over the requests
    tpot_ms: float


async def measure(port: int, model: str, load: Load, seed: int) -> Figures:
    """Run a load. Raises RuntimeError if a request fails or ends early."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(300, 1500) for _ in range(load.prompt_tokens)] for _ in range(load.requests)]
    timings: list[Timing] = []

    async def worker() -> None:
        while prompts:
            timings.append(await _stream(port, model, prompts.pop(), load.output_tokens))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(load.streams):
            group.create_task(worker())
    seconds = time.perf_counter() - started
    return Figures(
        load.requests * load.output_tokens / seconds,
        1000 * statistics.median(timing.first_s for timing in timings),
        1000 * statistics.median(timing.per_token_s for timing in timings),
    )


async def _stream(port: int, model: str, prompt: list[int], output_tokens: int) -> Timing:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "min_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        payload = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
        try:
            return await _read_events(reader, started, output_tokens)
        finally:
            writer.close()


async def _read_events(reader: asyncio.StreamReader, started: float, output_tokens: int) -> Timing:
    """Events in a chunked body are distinguished from chunk sizes by their `data: `, which suffices here."""
    first = last = 0.0
    usage: dict[str, int] | None = None
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status.decode().strip()}: {(await reader.read()).decode()[-300:]}")
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("choices"):
            last = time.perf_counter()
            first = first or last
        usage = event.get("usage") or usage
    if usage is None or usage["completion_tokens"] != output_tokens:
        raise RuntimeError(f"a stream ended early: usage {usage}, {output_tokens} tokens were requested")
    return Timing(first - started, (last - first) / max(1, output_tokens - 1))
