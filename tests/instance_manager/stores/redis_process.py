"""A real redis-server on a free loopback port, started, frozen, killed and restarted by a test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

REDIS_SERVER = shutil.which("redis-server")
START_TIMEOUT_S = 30.0


class RedisProcess:
    """Stores nothing on disk unless `keep`: then every acknowledged write is in its append-only file."""

    def __init__(self, directory: Path, *, keep: bool = False) -> None:
        self._directory = directory
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and return when it responds."""
        assert REDIS_SERVER is not None
        keep = ["--appendonly", "yes", "--appendfsync", "always"] if self._keep else ["--appendonly", "no"]
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory)]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [REDIS_SERVER, *where, "--save", "", *keep], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert self._process.poll() is None, (self._directory / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=START_TIMEOUT_S)
            self._process = None

    def freeze(self) -> None:
        """Keep its connections open without replying."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def flush(self) -> None:
        """Empty it."""
        assert self._ask(b"FLUSHALL\r\n") == b"+OK\r\n"

    def say(self, words: bytes) -> None:
        """A command that succeeds."""
        assert not self._ask(words + b"\r\n").startswith(b"-")

    def _answers(self) -> bool:
        try:
            return self._ask(b"PING\r\n") == b"+PONG\r\n"
        except OSError:
            return False

    def _ask(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_TIMEOUT_S) as connection:
            connection.sendall(command)
            return connection.recv(64)
