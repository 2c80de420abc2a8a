"""500 streams at once, for a minute: none may fail, none may be slow, and memory stays where it is."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests import fake_engine
from tests.faults.environment import Harbour
from tests.faults.journal import Fate, Ledger
from tests.faults.scenario import Scene

_NUM_CLIENTS = 500
_SECONDS = 60.0
_WARM_S = 20.0
_PIECE_S = 0.5
_TOKENS = 20
_MIB = 1 << 20
_FLAT_MIB = 12.0
_ENGINES = ("first", "second")
_FIRST_PIECE_S = 5.0


@dataclass(slots=True)
class _Seen:
    problems: list[str] = field(default_factory=list)
    num_done: int = 0
    num_open: int = 0
    most_open: int = 0
    slowest_s: float = 0.0
    rss: list[tuple[float, int]] = field(default_factory=list)


def five_hundred_at_once_for_a_minute(folder: Path, ledger: Ledger, seed: int) -> None:
    with Harbour(folder, ledger) as harbour:
        for name in _ENGINES:
            made = harbour.create(name, fake_engine.command("--chunk-delay", str(_PIECE_S)))
            assert made.status == 201, str(made)
        before = harbour.process.num_fds()
        seen = asyncio.run(_run(harbour, seed))
        ledger.count(Fate.ANSWERED, number=seen.num_done)
        for problem in seen.problems:
            ledger.count(Fate.LOST, problem)
        assert not seen.problems, f"{len(seen.problems)} of them failed: {seen.problems[:3]}"
        assert seen.most_open == _NUM_CLIENTS, f"only {seen.most_open} were open at once"
        assert seen.slowest_s < _FIRST_PIECE_S, f"a first piece took {seen.slowest_s:.1f} s"
        at_s = (10, 20, 30, 40, 50, 60)
        sizes = [max((size for at, size in seen.rss if at <= limit), default=0) // _MIB for limit in at_s]
        ledger.note(f"500 streams: {seen.num_done} done, first piece within {seen.slowest_s:.2f} s")
        ledger.note(f"500 streams: MiB of Berth after {at_s} s: {sizes}")
        early = max(size for at, size in seen.rss if at < _WARM_S)
        late = max(size for at, size in seen.rss if at >= _WARM_S)
        assert (late - early) / _MIB < _FLAT_MIB, f"memory grows: {early / _MIB:.0f}, {late / _MIB:.0f} MiB"
        for name in _ENGINES:
            harbour.control("DELETE", f"/instances/{name}")
        assert not (problems := harbour.settle()), problems
        assert harbour.process.num_fds() <= before


async def _run(harbour: Harbour, seed: int) -> _Seen:
    seen = _Seen()
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(harbour, seen, began))
        clients = [
            group.create_task(
                _client(harbour.berth.port, random.Random(seed + number), seen, began + _SECONDS)
            )
            for number in range(_NUM_CLIENTS)
        ]
        await asyncio.wait(clients)
        watching.cancel()
    return seen


async def _watch(harbour: Harbour, seen: _Seen, began: float) -> None:
    while True:
        seen.rss.append((time.monotonic() - began, harbour.process.memory_info().rss))
        await asyncio.sleep(0.5)


async def _client(port: int, dice: random.Random, seen: _Seen, until: float) -> None:
    """One stream after the other, each on a connection of its own."""
    await asyncio.sleep(dice.uniform(0, 5))
    while time.monotonic() < until:
        try:
            async with asyncio.timeout(60):
                await _stream(port, dice.choice(_ENGINES), seen)
            seen.num_done += 1
        except (OSError, TimeoutError, AssertionError, asyncio.IncompleteReadError) as error:
            seen.problems.append(repr(error))


async def _stream(port: int, name: str, seen: _Seen) -> None:
    body = json.dumps({"stream": True, "max_tokens": _TOKENS}).encode()
    target = f"POST /proxy/{name}/v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        seen.num_open += 1
        seen.most_open = max(seen.most_open, seen.num_open)
        began = time.monotonic()
        writer.write(f"{target}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        pieces = b""
        while size := int(await reader.readline(), 16):
            if not pieces:
                seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)
            pieces += (await reader.readexactly(size + 2))[:-2]
        words = [json.loads(one)["choices"][0]["text"] for one in pieces.split(b"data: ")[1:-1]]
        assert words == [f" token{number}" for number in range(_TOKENS)], words
        assert pieces.endswith(b"data: [DONE]\n\n"), pieces[-100:]
    finally:
        seen.num_open -= 1
        writer.close()


SCENE = Scene("streams", alone=(five_hundred_at_once_for_a_minute,))
