"""A real Berth in a process of its own, for tests that drive it from outside as a user would."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_port_range(count: int) -> int:
    """The first of `count` consecutive ports that are free now."""
    while True:
        first = free_port()
        if first + count < 65536 and all(is_free(first + offset) for offset in range(count)):
            return first


def is_free(port: int) -> bool:
    """Whether an engine could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class BerthProcess:
    """`python app.py`, with settings from the environment. Everything it ever spawned carries `mark`."""

    def __init__(
        self, folder: Path, *, root: str | Path = ROOT, argv: Sequence[str] = (), **settings: str
    ) -> None:
        """`root`: where app.py and its packages are; `argv`: its flags."""
        self.port = int(settings.get("APP_PORT") or free_port())
        self.base_port = free_port_range(5)
        self.url = f"http://127.0.0.1:{self.port}"
        self.mark = f"BERTH_TEST_{secrets.token_hex(8)}"
        self._log = (folder / "berth.log").open("w+b")
        defaults = {
            "APP_HOST": "127.0.0.1",
            "APP_PORT": str(self.port),
            "VLLM_BASE_PORT": str(self.base_port),
            "VLLM_MAX_INSTANCES": "5",
            "LOG_DIR": str(folder / "logs"),
            "STATE_DIR": str(folder / "state"),
            self.mark: "1",
        }
        environment = {**os.environ, "PYTHONPATH": str(root), **defaults, **settings}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(root, "app.py")), *argv],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait_until_serving(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with self.client() as client:
            while True:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"Berth does not serve; its log:\n{self.output()}")
                try:
                    if client.get("/health/readiness").status_code == 200:
                        return
                except httpx.TransportError:
                    time.sleep(0.02)

    def client(self, timeout_s: float = 60.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, timeout=timeout_s)

    def async_client(self, timeout_s: float = 60.0) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=timeout_s)

    def output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def wait_for_line(self, *words: str) -> str:
        """The first line of its log with all of these words: a thread writes it, often after the answer."""
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        while time.monotonic() < deadline:
            for line in self.output().splitlines():
                if all(word in line for word in words):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line with {words} in Berth's log:\n{self.output()}")

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status, once it has ended."""
        return self._process.wait(EXIT_TIMEOUT_S)

    def survivors(self) -> list[psutil.Process]:
        """Live processes that Berth spawned, directly or not, whatever session or parent they have now."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.pid != self.pid and self.mark in process.environ()
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def close(self) -> None:
        """End it if need be, and whatever it has left behind: nothing outlives a test."""
        if self._process.poll() is None:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for process in self.survivors():
            process.kill()
        self._log.close()


@contextmanager
def running_berth(folder: Path, *, root: str | Path = ROOT, **settings: str) -> Iterator[BerthProcess]:
    """A Berth that serves; ended with SIGTERM, after which nothing of it may be left."""
    berth = BerthProcess(folder, root=root, **settings)
    try:
        berth.wait_until_serving()
        yield berth
        berth.terminate()
        assert berth.wait() == 0, berth.output()
        assert berth.survivors() == []
    finally:
        berth.close()
