"""Measures how long a client's stream stalls during another client's request, on a real engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.victim import longest_gap, streaming

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "models" / "berth-demo"
START_S = 120
ANSWER_S = 120


@dataclass
class Disturbed:
    """The result of one disturbance. Times in seconds."""

    response: httpx.Response | None = None
    gap_s: float = 0.0  # the longest gap in the victim's stream during the request
    undisturbed_s: float = 0.0  # the same before the request
    grown_bytes: int = 0  # the peak growth of the engine's memory


@dataclass
class AttackedEngine:
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def disturb(self, path: str, content: bytes, *, quiet_s: float = 0.7) -> Disturbed:
        """Send `content` while a victim streams."""
        result = Disturbed()
        with streaming(self.port, 1) as victim:
            victim.wait_until_streaming()
            time.sleep(quiet_s)
            _reset_peak(self.process.pid)
            before = self.memory()
            began = time.monotonic()
            headers = {"content-type": "application/json"}
            with httpx.Client(timeout=ANSWER_S, trust_env=False) as http, suppress(httpx.HTTPError):
                result.response = http.post(self.url + path, content=content, headers=headers)
            time.sleep(0.2)
            ended = time.monotonic()
            result.grown_bytes = max(0, _peak(self.process.pid) - before)
            streams = victim.streams(began - quiet_s)
        result.undisturbed_s = longest_gap(streams, began - quiet_s, began).seconds
        result.gap_s = longest_gap(streams, began, ended).seconds
        return result


def _reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@contextmanager
def attacked_engine(model: Path = DEMO, *flags: str) -> Iterator[AttackedEngine]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", str(model), "--port", str(port), *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    engine = AttackedEngine(port, process)
    try:
        _wait_ready(engine)
        yield engine
    finally:
        process.terminate()
        process.wait(START_S)


def _wait_ready(engine: AttackedEngine) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert engine.process.poll() is None
        assert time.monotonic() < deadline
        try:
            if httpx.get(f"{engine.url}/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
