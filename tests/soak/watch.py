"""Observes Berth from outside: the memory of its engines' processes, and its events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import psutil

from tests.soak.history import History

_RECONNECT_S = 0.1
_IDLE_STATES = {"sleeping", "waking", "stopped"}


class MemoryWatch:
    """Samples the total memory of processes in a thread.

    Counts each process's own memory (USS), which its end would free. Library pages shared by several engines
    remain, whichever engine ends: neither this nor Berth counts them for any engine.
    """

    def __init__(
        self,
        processes: Callable[[], Sequence[psutil.Process]],
        budget_bytes: int | None = None,
        interval_s: float = 0.15,
    ) -> None:
        self.held_bytes: list[int] = []
        self.pss_bytes: list[int] = []  # with the shared pages, each counted once
        self.over: list[tuple[float, dict[int, int]]] = []  # monotonic seconds; pid -> bytes
        self._budget_bytes = budget_bytes
        self._processes = processes
        self._interval_s = interval_s
        self._stop = threading.Event()

    @property
    def peak_bytes(self) -> int:
        return max(self.held_bytes, default=0)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._sample_until_stopped, name="memory watch")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._interval_s):
            processes = self._processes()
            held, pss = _held(processes)
            if self._budget_bytes is not None and sum(held.values()) > self._budget_bytes:
                # Processes are read one by one: only memory held in both samples existed at one moment.
                again, _ = _held(processes)
                held = {pid: min(size, again.get(pid, 0)) for pid, size in held.items()}
                if sum(held.values()) > self._budget_bytes:
                    self.over.append((time.monotonic(), held))
            self.held_bytes.append(sum(held.values()))
            self.pss_bytes.append(pss)


def _held(processes: Sequence[psutil.Process]) -> tuple[dict[int, int], int]:
    """Bytes of each process alone, and of all with shared pages."""
    held: dict[int, int] = {}
    pss = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            memory = process.memory_full_info()
            held[process.pid] = memory.uss
            pss += memory.pss
    return held, pss


def below(pid: int) -> Callable[[], Sequence[psutil.Process]]:
    """All descendants of a process."""
    root = psutil.Process(pid)
    return lambda: root.children(recursive=True)


class EventWatch:
    """Follows `GET /events`; each violation becomes a line of `problems`."""

    def __init__(self, *, is_stormy: bool = False) -> None:
        """`is_stormy`: engines may fail, and may stop while they are in use."""
        self._is_stormy = is_stormy
        self.failures: list[tuple[float, str, Mapping[str, Any]]] = []  # time, instance id, event
        self.states: Counter[str] = Counter()  # transitions to each state
        self.evictions: Counter[str] = Counter()  # by action
        self.expiries: Counter[str] = Counter()  # by action
        self.drains = 0  # stops of engines in use, which must drain first
        self.problems: list[str] = []
        self.connected = asyncio.Event()
        self._last_id: int | None = None
        self._is_continued = True

    async def follow_on(self, http: httpx.AsyncClient, history: History) -> None:
        """Until cancelled, over successive Berth processes. Event ids only ever increase."""
        while True:
            began, self._is_continued = time.monotonic(), False
            try:
                await self.follow(http)
            except httpx.HTTPError as error:
                if not history.is_berth_away(began, time.monotonic()):
                    self.problems.append(f"the event stream broke: {error!r}")
            await asyncio.sleep(_RECONNECT_S)

    async def follow(self, http: httpx.AsyncClient) -> None:
        """Until cancelled or the stream ends."""
        async with http.stream("GET", "/events", timeout=None) as response:
            response.raise_for_status()
            self.connected.set()
            fields: dict[str, str] = {}
            async for line in response.aiter_lines():
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.strip()
                elif "data" in fields:
                    self._on_event(int(fields["id"]), fields["event"], json.loads(fields["data"]))
                    fields = {}

    def _on_event(self, number: int, kind: str, data: Mapping[str, Any]) -> None:
        if self._last_id is not None and self._is_continued and number != self._last_id + 1:
            self.problems.append(f"event {self._last_id} is followed by {number}: some were lost")
        if self._last_id is not None and number <= self._last_id:
            self.problems.append(f"event {self._last_id} is followed by {number}, which is not higher")
        self._last_id, self._is_continued = number, True
        if kind == "instance.state":
            status = data["status"]
            self.states[status] += 1
            if status == "failed" and self._is_stormy:
                self.failures.append((time.monotonic(), data["instance_id"], data))
            elif status == "failed":
                self.problems.append(f"an engine failed: {data}")
            self.drains += status == "stopping" and data["in_flight"] > 0
            if status in _IDLE_STATES and data["in_flight"] and not self._is_stormy:
                self.problems.append(f"an engine that was in use is {status}: {data}")
        elif kind == "instance.evicted":
            self.evictions[data["action"]] += 1
        elif kind == "instance.expired":
            self.expiries[data["action"]] += 1
