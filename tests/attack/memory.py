"""Monitors the memory of Berth and its engine during attacks; kills both before the machine runs out."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

MOST_BYTES = 6 << 30  # of Berth and the engine with its children
_EVERY_S = 0.05
_LOOK_FOR_CHILDREN_S = 0.5


class MonitoredProcess:
    """One process with its children, and their peak memory since `begin`."""

    def __init__(self, pid: int, *, with_children: bool) -> None:
        self.process = psutil.Process(pid)
        self.most_bytes = 0
        self._with_children = with_children
        self._children: list[psutil.Process] = []
        self._before_bytes = 0
        self._looked_at = 0.0

    def begin(self) -> None:
        with suppress(OSError):  # Linux only, and not in every container: otherwise samples must do
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        self._before_bytes = self.most_bytes = self.sample()

    def sample(self) -> int:
        """Their current memory."""
        if self._with_children and time.monotonic() - self._looked_at > _LOOK_FOR_CHILDREN_S:
            with suppress(psutil.Error):
                self._children = self.process.children(recursive=True)
            self._looked_at = time.monotonic()
        held = _rss(self.process) + sum(map(_share, self._children))
        self.most_bytes = max(self.most_bytes, held)
        return held

    def grown(self) -> int:
        """The peak growth since `begin`."""
        self.sample()
        peak = 0
        with suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak = int(line.split()[1]) << 10
        return max(0, max(peak, self.most_bytes) - self._before_bytes)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _share(process: psutil.Process) -> int:
    """Its proportional memory: forks share most of their pages."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return _rss(process)


class MemoryMonitor:
    """Samples continuously, in a thread."""

    def __init__(self, berth: int, engine: int) -> None:
        self.berth = MonitoredProcess(berth, with_children=False)
        self.engine = MonitoredProcess(engine, with_children=True)
        self.has_ended_them = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def begin(self) -> None:
        self.berth.begin()
        self.engine.begin()

    def _run(self) -> None:
        while not self._done.wait(_EVERY_S):
            if self.berth.sample() + self.engine.sample() > MOST_BYTES:
                self.has_ended_them = True
                for process in (self.engine.process, self.berth.process):
                    with suppress(psutil.Error):
                        process.kill()
                return
