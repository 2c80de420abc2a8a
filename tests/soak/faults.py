"""A seeded mix of faults for the soak: engines killed and frozen, clients that write noise or leave."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
from collections.abc import Sequence
from contextlib import suppress

import httpx

_PAUSE_S = (0.5, 3.0)
_FROZEN_S = (0.1, 3.0)
_PATIENCE_S = 10.0
# What a client may be told when its engine is killed: an error with a reason, or a cut connection.
_CLEAR = re.compile(r"^50[23] \{\"error\"|^an error in the answer|^(?:RemoteProtocol|Read)Error\(")


def is_clear(problem: str) -> bool:
    """Whether a request has failed as it may where engines are killed."""
    return bool(_CLEAR.match(problem))


async def wreak(http: httpx.AsyncClient, seed: int, done: list[str], problems: list[str]) -> None:
    """Go on until cancelled; `done` tells what was done."""
    dice = random.Random(seed)
    while True:
        await asyncio.sleep(dice.uniform(*_PAUSE_S))
        act = dice.choice((_kill, _freeze, _write_noise, _leave))
        if problem := await act(http, dice):
            problems.append(problem)
        done.append(act.__name__.strip("_"))


async def _pids(http: httpx.AsyncClient) -> Sequence[int]:
    response = await http.get("/instances")
    return [one["pid"] for one in response.json()["data"] if one["pid"] is not None]


async def _kill(http: httpx.AsyncClient, dice: random.Random) -> str:
    with suppress(ProcessLookupError, IndexError):
        os.kill(dice.choice(await _pids(http)), signal.SIGKILL)
    return ""


async def _freeze(http: httpx.AsyncClient, dice: random.Random) -> str:
    with suppress(ProcessLookupError, IndexError):
        pid = dice.choice(await _pids(http))
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(dice.uniform(*_FROZEN_S))
        finally:
            os.kill(pid, signal.SIGCONT)
    return ""


async def _write_noise(http: httpx.AsyncClient, dice: random.Random) -> str:
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    noise = dice.randbytes(dice.randint(1, 2000))
    writer.write(dice.choice((b"", b"POST /v1/completions HTTP/1.1\r\n")) + noise)
    writer.write_eof()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            with suppress(ConnectionError):
                await reader.read()
    except TimeoutError:
        return f"noise was neither answered nor hung up on: {noise[:100]!r}"
    finally:
        writer.close()
    return ""


async def _leave(http: httpx.AsyncClient, dice: random.Random) -> str:
    _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    body = json.dumps({"model": "model-0", "prompt": "x", "stream": True, "max_tokens": 20}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    writer.write(request[: dice.randint(1, len(request))])
    await asyncio.sleep(dice.uniform(0, 0.3))
    writer.transport.abort()
    return ""
