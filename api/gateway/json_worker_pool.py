"""Parses and changes long JSON bodies in worker processes (json_worker.py), one each, two at a time."""

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

LONG_BYTES = 2 * 2**20  # shorter bodies hold the interpreter for less than 100 ms
_MAX_WORKERS = 2
_TIMEOUT_S = 60.0
_PIECE_BYTES = 2**20
_MAX_LINE_BYTES = 4 * 2**20  # an outline is a quarter of a million characters, of four bytes at most
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Outline:
    """A long body in short. `fields`: its top-level fields, with long values truncated."""

    name: str | None
    fields: dict[str, Any]


class JsonWorkerPool:
    """Belongs to one gateway and one event loop."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_MAX_WORKERS)

    async def read(self, body: bytes) -> Outline:
        """Raises InvalidBody and UnclearModel."""
        answer, _ = await self._ask({"do": "read"}, body)
        return Outline(answer["name"], answer["outline"])

    async def change(self, body: bytes, strip: frozenset[str], changes: Mapping[str, Any]) -> bytes:
        """The body with fields removed (`strip`) and set (`changes`)."""
        _, encoded = await self._ask({"do": "change", "strip": sorted(strip), "changes": dict(changes)}, body)
        return encoded

    async def _ask(self, order: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        async with self._turns:
            line, output = await _run(json.dumps(order).encode() + b"\n", body)
        if not line.endswith(b"\n"):
            raise InvalidBody("the body takes too much time or memory to parse; send a smaller one")
        answer: dict[str, Any] = json.loads(line)
        raise_failure(answer)
        return answer, output


async def _run(order: bytes, body: bytes) -> tuple[bytes, bytes]:
    """The worker's answer line and the output after it; empty if it fails."""
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
            reading = asyncio.create_task(_read(cast(asyncio.StreamReader, process.stdout)))
            try:
                await _write(cast(asyncio.StreamWriter, process.stdin), order, body)
                return await reading
            finally:
                reading.cancel()
    except TimeoutError:
        return b"", b""
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())


async def _write(stdin: asyncio.StreamWriter, order: bytes, body: bytes) -> None:
    with suppress(ConnectionError):  # it has ended: its output says why
        stdin.write(order)
        for start in range(0, len(body), _PIECE_BYTES):
            stdin.write(body[start : start + _PIECE_BYTES])
            await stdin.drain()
    stdin.close()


async def _read(stdout: asyncio.StreamReader) -> tuple[bytes, bytes]:
    line = await stdout.readline()
    pieces = []
    while piece := await stdout.read(_PIECE_BYTES):
        pieces.append(piece)
    return line, b"".join(pieces)
