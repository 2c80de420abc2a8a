"""Successive Berth processes: whatever kills one starts the next, as systemd would."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.berth_process import BerthProcess, free_port, is_free
from tests.instance_manager.stores.redis_process import RedisProcess
from tests.soak.history import History, Impact

NUM_PORTS = 12
_MARK = "BERTH_SOAK_MARK"
_SERVES_WITHIN_S = 90.0
_PAUSE_S = 0.3


class Deployment:
    """All Berth processes share settings, state, ports and Redis; each has a directory for its log."""

    def __init__(
        self, directory: Path, settings: Mapping[str, str], history: History, redis: RedisProcess | None
    ) -> None:
        self.directory = directory
        self.history = history
        self.redis = redis
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.first_port = _free_ports()
        self._mark = secrets.token_hex(8)
        self._settings = {
            "APP_PORT": str(self.port),
            "VLLM_BASE_PORT": str(self.first_port),
            "VLLM_MAX_INSTANCES": str(NUM_PORTS),
            "LOG_DIR": str(directory / "logs"),
            "STATE_DIR": str(directory / "state"),
            _MARK: self._mark,
            **settings,
        }
        self.berths: list[BerthProcess] = []
        self._turn = asyncio.Lock()  # held while Berth is being ended or started

    @property
    def berth(self) -> BerthProcess:
        return self.berths[-1]

    def start_berth(self, **settings: str) -> None:
        directory = self.directory / f"berth-{len(self.berths)}"
        directory.mkdir()
        self.berths.append(BerthProcess(directory, **{**self._settings, **settings}))

    @property
    def no_restart(self) -> asyncio.Lock:
        """While it is held, no fault ends Berth or starts another."""
        return self._turn

    async def end_and_restart(
        self, kind: str, number: signal.Signals, rng: random.Random, **settings: str
    ) -> None:
        """End Berth and return when the next one serves. Some of those are killed during their start."""
        impact = Impact.END if number is signal.SIGTERM else Impact.KILL
        async with self._turn:
            with self.history.during(kind, impact):
                os.kill(self.berth.pid, number)
                status = await asyncio.to_thread(self.berth.wait)
                if impact is Impact.END and status != 0:
                    self.history.problems.append(f"exit status {status} after SIGTERM: {self.log_tail()}")
                if rng.random() < 0.2:
                    await self._kill_during_start(rng.uniform(0.1, 2.0), settings)
                await self._start_until_serving(settings)

    async def _kill_during_start(self, after_s: float, settings: Mapping[str, str]) -> None:
        with self.history.during("Berth killed during its start", Impact.KILL):
            self.start_berth(**settings)
            await asyncio.sleep(after_s)
            os.kill(self.berth.pid, signal.SIGKILL)
            await asyncio.to_thread(self.berth.wait)

    async def watch_and_restart(self) -> None:
        """Until cancelled, report and replace a Berth that exits by itself."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            if self._turn.locked() or not self.berth.has_ended:
                continue
            async with self._turn:
                self.history.problems.append(f"Berth has exited by itself: {self.log_tail()}")
                with self.history.during("Berth exited by itself", Impact.KILL):
                    await self._start_until_serving({})

    async def _start_until_serving(self, settings: Mapping[str, str]) -> None:
        """Start Berth, repeatedly if need be, until it serves: it may fail while Redis is away."""
        until = time.monotonic() + _SERVES_WITHIN_S
        while True:
            began = time.monotonic()
            self.start_berth(**settings)
            try:
                await asyncio.to_thread(self.berth.wait_until_serving)
                return
            except AssertionError:
                if not self.berth.has_ended or time.monotonic() > until:
                    raise
                if not self.history.has(Impact.STORE, began, time.monotonic(), after_s=1.0):
                    self.history.problems.append(f"Berth did not start: {self.log_tail()}")
                await asyncio.sleep(_PAUSE_S)

    def log_tail(self) -> str:
        return self.berth.output()[-1500:]

    def logs(self) -> str:
        return "\n".join(berth.output() for berth in self.berths)

    def processes(self) -> list[psutil.Process]:
        """The live processes that any of these Berths started: shims, engines and their children."""
        berths = {berth.pid for berth in self.berths}
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.pid not in berths and process.environ().get(_MARK) == self._mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def is_ours(self, pid: int) -> bool:
        """Whether it may be killed."""
        try:
            return bool(psutil.Process(pid).environ().get(_MARK) == self._mark)
        except (psutil.Error, OSError):
            return False

    def taken_ports(self) -> list[int]:
        """Those of our ports that are not free."""
        ports = [self.port, *range(self.first_port, self.first_port + NUM_PORTS)]
        return [port for port in ports if not is_free(port)]

    def close(self) -> None:
        """End all processes, however the storm has ended."""
        for berth in reversed(self.berths):
            berth.close()
        for process in self.processes():
            process.kill()
        if self.redis is not None:
            self.redis.kill()


def _free_ports() -> int:
    """The first of NUM_PORTS free ports, below the ephemeral range (from 32768)."""
    while True:
        first = random.randrange(23_000, 23_480)
        if all(is_free(first + offset) for offset in range(NUM_PORTS)):
            return first
