"""500 concurrent streams for a minute: none may fail or be slow, and memory must not grow."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests import fake_engine
from tests.faults.environment import FaultEnvironment
from tests.faults.journal import Journal, Outcome
from tests.faults.scenario import Scenario

_NUM_CLIENTS = 500
_SECONDS = 60.0
_WARM_S = 20.0
_CHUNK_DELAY_S = 0.5
_TOKENS = 20
_MIB = 1 << 20
_FLAT_MIB = 12.0
_ENGINES = ("first", "second")
_FIRST_CHUNK_S = 5.0


@dataclass(slots=True)
class _Observed:
    problems: list[str] = field(default_factory=list)
    num_done: int = 0
    num_open: int = 0
    most_open: int = 0
    slowest_s: float = 0.0
    rss: list[tuple[float, int]] = field(default_factory=list)


def five_hundred_at_once_for_a_minute(directory: Path, journal: Journal, seed: int) -> None:
    with FaultEnvironment(directory, journal) as env:
        for name in _ENGINES:
            made = env.create(name, fake_engine.command("--chunk-delay", str(_CHUNK_DELAY_S)))
            assert made.status == 201, str(made)
        before = env.process.num_fds()
        observed = asyncio.run(_run(env, seed))
        journal.count(Outcome.ANSWERED, number=observed.num_done)
        for problem in observed.problems:
            journal.count(Outcome.LOST, problem)
        assert not observed.problems, f"{len(observed.problems)} of them failed: {observed.problems[:3]}"
        assert observed.most_open == _NUM_CLIENTS, f"only {observed.most_open} were open at once"
        assert observed.slowest_s < _FIRST_CHUNK_S, f"a first chunk took {observed.slowest_s:.1f} s"
        at_s = (10, 20, 30, 40, 50, 60)
        sizes = [max((size for at, size in observed.rss if at <= limit), default=0) // _MIB for limit in at_s]
        journal.note(f"500 streams: {observed.num_done} done, first chunk within {observed.slowest_s:.2f} s")
        journal.note(f"500 streams: MiB of Berth after {at_s} s: {sizes}")
        early = max(size for at, size in observed.rss if at < _WARM_S)
        late = max(size for at, size in observed.rss if at >= _WARM_S)
        assert (late - early) / _MIB < _FLAT_MIB, f"memory grows: {early / _MIB:.0f}, {late / _MIB:.0f} MiB"
        for name in _ENGINES:
            env.control("DELETE", f"/instances/{name}")
        assert not (problems := env.settle()), problems
        assert env.process.num_fds() <= before


async def _run(env: FaultEnvironment, seed: int) -> _Observed:
    observed = _Observed()
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(env, observed, began))
        clients = [
            group.create_task(
                _client(env.berth.port, random.Random(seed + number), observed, began + _SECONDS)
            )
            for number in range(_NUM_CLIENTS)
        ]
        await asyncio.wait(clients)
        watching.cancel()
    return observed


async def _watch(env: FaultEnvironment, observed: _Observed, began: float) -> None:
    while True:
        observed.rss.append((time.monotonic() - began, env.process.memory_info().rss))
        await asyncio.sleep(0.5)


async def _client(port: int, dice: random.Random, observed: _Observed, deadline: float) -> None:
    """One stream after the other, each on its own connection."""
    await asyncio.sleep(dice.uniform(0, 5))
    while time.monotonic() < deadline:
        try:
            async with asyncio.timeout(60):
                await _stream(port, dice.choice(_ENGINES), observed)
            observed.num_done += 1
        except (OSError, TimeoutError, AssertionError, asyncio.IncompleteReadError) as error:
            observed.problems.append(repr(error))


async def _stream(port: int, name: str, observed: _Observed) -> None:
    body = json.dumps({"stream": True, "max_tokens": _TOKENS}).encode()
    target = f"POST /proxy/{name}/v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        observed.num_open += 1
        observed.most_open = max(observed.most_open, observed.num_open)
        began = time.monotonic()
        writer.write(f"{target}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        chunks = b""
        while size := int(await reader.readline(), 16):
            if not chunks:
                observed.slowest_s = max(observed.slowest_s, time.monotonic() - began)
            chunks += (await reader.readexactly(size + 2))[:-2]
        words = [json.loads(event)["choices"][0]["text"] for event in chunks.split(b"data: ")[1:-1]]
        assert words == [f" token{number}" for number in range(_TOKENS)], words
        assert chunks.endswith(b"data: [DONE]\n\n"), chunks[-100:]
    finally:
        observed.num_open -= 1
        writer.close()


SCENARIO = Scenario("streams", isolated=(five_hundred_at_once_for_a_minute,))
