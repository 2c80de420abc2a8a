"""The engine's side of the processes that write grammars."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import weakref
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.core.own_process import only_here
from engine.errors import EngineError, InvalidRequest
from engine.structured.limits import WRITE_S
from engine.structured.spec import StructuredOutput


class Writers:
    """Starts a process when one is needed, and keeps it. Each thread that writes takes one for itself."""

    def __init__(self, limit_s: float = WRITE_S) -> None:
        self._limit_s = limit_s
        self._idle: queue.LifoQueue[_Writer] = queue.LifoQueue()

    def write(self, wanted: StructuredOutput) -> str:
        """The grammar's source. Blocks. Raises InvalidRequest, and EngineError if the process ends."""
        try:
            writer = self._idle.get_nowait()
        except queue.Empty:
            writer = _Writer()
        try:
            grammar = writer.write(wanted, self._limit_s)
        except InvalidRequest:
            self._idle.put(writer)
            raise
        self._idle.put(writer)
        return grammar

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()


class _Writer:
    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.structured.writer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._asks: Any = self._process.stdin
        self._replies: Any = self._process.stdout
        self.close = weakref.finalize(self, only_here(_end), self._process)

    def write(self, wanted: StructuredOutput, limit_s: float) -> str:
        request = json.dumps({"wanted": asdict(wanted), "limit_s": limit_s})
        try:
            self._asks.write(request.encode() + b"\n")
            self._asks.flush()
            line = self._replies.readline()
        except OSError:
            line = b""
        if not line:
            self.close()
            raise EngineError("The process that reads schemas has ended: try again.")
        reply = json.loads(line)
        if "refused" in reply:
            raise InvalidRequest(reply["refused"], param=reply["param"])
        grammar: str = reply["grammar"]
        return grammar


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what it would still send
                pipe.close()
    process.kill()
    process.wait()
