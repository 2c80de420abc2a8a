"""Long JSON bodies, read and change by a process of their own (json_worker.py), few at a time."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from api.gateway.json_worker import raise_failure
from api.http.named_model import InvalidBody

LONG_BYTES = 2 * 2**20  # of shorter ones, the parser holds the interpreter for less than 100 ms
_AT_A_TIME = 2
_TIMEOUT_S = 60.0
_PIECE_BYTES = 2**20
_MAX_LINE_BYTES = 4 * 2**20  # an outline is a quarter of a million characters, of four bytes at most
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Outline:
    """What is known of a long body. `fields`: the body's own, with the beginnings of what is long."""

    name: str | None
    fields: dict[str, Any]


class JsonWorkerPool:
    """A gateway's. Belongs to one event loop."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_A_TIME)

    async def read(self, body: bytes) -> Outline:
        """Raises InvalidBody and UnclearModel."""
        answer, _ = await self._ask({"do": "read"}, body)
        return Outline(answer["name"], answer["outline"])

    async def change(self, body: bytes, strip: frozenset[str], changes: Mapping[str, Any]) -> bytes:
        """The body without some fields, and with others."""
        _, made = await self._ask({"do": "change", "strip": sorted(strip), "changes": dict(changes)}, body)
        return made

    async def _ask(self, order: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        async with self._turns:
            line, made = await _run(json.dumps(order).encode() + b"\n", body)
        if not line.endswith(b"\n"):
            raise InvalidBody("the body is too long to be read here")
        answer: dict[str, Any] = json.loads(line)
        raise_failure(answer)
        return answer, made


async def _run(order: bytes, body: bytes) -> tuple[bytes, bytes]:
    """The line that the process answers, and what follows it; nothing where it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "api.gateway.json_worker",
        cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=_MAX_LINE_BYTES,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            told = asyncio.create_task(_read(cast(asyncio.StreamReader, process.stdout)))
            try:
                await _write(cast(asyncio.StreamWriter, process.stdin), order, body)
                return await told
            finally:
                told.cancel()
    except TimeoutError:
        return b"", b""
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())


async def _write(given: asyncio.StreamWriter, order: bytes, body: bytes) -> None:
    with suppress(ConnectionError):  # it has ended: what it said tells why
        given.write(order)
        for start in range(0, len(body), _PIECE_BYTES):
            given.write(body[start : start + _PIECE_BYTES])
            await given.drain()
    given.close()


async def _read(told: asyncio.StreamReader) -> tuple[bytes, bytes]:
    line = await told.readline()
    pieces = []
    while piece := await told.read(_PIECE_BYTES):
        pieces.append(piece)
    return line, b"".join(pieces)
