"""A download's progress in Ollama's lines: status, digest, total, completed."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from api.http.errors import error_for
from instance_manager.errors import ManagerError

Line = Mapping[str, Any]

STARTED: Line = {"status": "pulling manifest"}
SUCCEEDED: Line = {"status": "success"}


async def ollama_lines(model: str, lines: AsyncGenerator[Line]) -> AsyncGenerator[Line]:
    """The lines of POST /models/pull, as Ollama's. An error is the last line."""
    yield STARTED
    async with aclosing(lines):
        try:
            async for line in lines:
                if "error" in line:
                    yield {"error": line["error"]["message"]}
                elif line["status"] == "success":
                    yield {"status": "writing manifest"}
                    yield SUCCEEDED
                elif line.get("file") is not None:
                    yield _progress(model, line)
        except ManagerError as exc:
            yield {"error": error_for(exc).message}


def _progress(model: str, line: Line) -> Line:
    """Clients show one bar for each digest: a hash of the file's name, as its contents aren't known yet."""
    digest = hashlib.sha256(f"{model}/{line['file']}".encode()).hexdigest()
    return {
        "status": f"pulling {line['file']}",
        "digest": f"sha256:{digest}",
        "total": line["total"],
        "completed": line["completed"],
    }


async def last_of(lines: AsyncGenerator[Line]) -> Line:
    """The outcome, for a client that wants no stream."""
    last: Line = {}
    async with aclosing(lines):
        async for line in lines:
            last = line
    return last
