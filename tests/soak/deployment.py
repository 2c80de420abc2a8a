"""The place of one Berth after another: who kills it starts the next one, as systemd would."""

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
from tests.soak.history import Harm, History

NUM_PORTS = 12
_MARK = "BERTH_SOAK_MARK"
_SERVES_WITHIN_S = 90.0
_PAUSE_S = 0.3


class Place:
    """Settings, folder, ports and Redis are the same for all Berths; each has a folder for its own log."""

    def __init__(
        self, folder: Path, settings: Mapping[str, str], history: History, redis: RedisProcess | None
    ) -> None:
        self.folder = folder
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
            "LOG_DIR": str(folder / "logs"),
            "STATE_DIR": str(folder / "state"),
            _MARK: self._mark,
            **settings,
        }
        self.all: list[BerthProcess] = []
        self._turn = asyncio.Lock()  # who has it is ending Berth, or starting the next

    @property
    def berth(self) -> BerthProcess:
        return self.all[-1]

    def begin(self, **settings: str) -> None:
        folder = self.folder / f"berth-{len(self.all)}"
        folder.mkdir()
        self.all.append(BerthProcess(folder, **{**self._settings, **settings}))

    async def fell(self, kind: str, number: signal.Signals, dice: random.Random, **settings: str) -> None:
        """End the Berth that serves; return when the next one does. Now and then that one is killed too."""
        harm = Harm.END if number is signal.SIGTERM else Harm.KILL
        async with self._turn:
            with self.history.during(kind, harm):
                os.kill(self.berth.pid, number)
                status = await asyncio.to_thread(self.berth.wait)
                if harm is Harm.END and status != 0:
                    self.history.problems.append(f"exit status {status} after SIGTERM: {self.log_tail()}")
                if dice.random() < 0.2:
                    await self._kill_amid_its_start(dice.uniform(0.1, 2.0), settings)
                await self._serve_again(settings)

    async def _kill_amid_its_start(self, after_s: float, settings: Mapping[str, str]) -> None:
        with self.history.during("Berth killed amid its start", Harm.KILL):
            self.begin(**settings)
            await asyncio.sleep(after_s)
            os.kill(self.berth.pid, signal.SIGKILL)
            await asyncio.to_thread(self.berth.wait)

    async def look_after(self) -> None:
        """Until cancelled: a Berth that nobody has ended is not to end."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            if self._turn.locked() or not self.berth.has_ended:
                continue
            async with self._turn:
                self.history.problems.append(f"Berth has ended by itself: {self.log_tail()}")
                with self.history.during("Berth ended by itself", Harm.KILL):
                    await self._serve_again({})

    async def _serve_again(self, settings: Mapping[str, str]) -> None:
        """Start one after the other until one serves: it may not while its Redis is away."""
        until = time.monotonic() + _SERVES_WITHIN_S
        while True:
            began = time.monotonic()
            self.begin(**settings)
            try:
                await asyncio.to_thread(self.berth.wait_until_serving)
                return
            except AssertionError:
                if not self.berth.has_ended or time.monotonic() > until:
                    raise
                if not self.history.has(Harm.STORE, began, time.monotonic(), after_s=1.0):
                    self.history.problems.append(f"Berth did not start: {self.log_tail()}")
                await asyncio.sleep(_PAUSE_S)

    def log_tail(self) -> str:
        return self.berth.output()[-1500:]

    def logs(self) -> str:
        return "\n".join(berth.output() for berth in self.all)

    def processes(self) -> list[psutil.Process]:
        """Live ones that any of these Berths has started: shims, engines and what those have started."""
        berths = {berth.pid for berth in self.all}
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
        """Of ours, those that are not free."""
        ports = [self.port, *range(self.first_port, self.first_port + NUM_PORTS)]
        return [port for port in ports if not is_free(port)]

    def close(self) -> None:
        """Nothing outlives the storm, however it has ended."""
        for berth in reversed(self.all):
            berth.close()
        for process in self.processes():
            process.kill()
        if self.redis is not None:
            self.redis.kill()


def _free_ports() -> int:
    """The first of some, below those that the system gives to clients (from 32768 on)."""
    while True:
        first = random.randrange(23_000, 23_480)
        if all(is_free(first + offset) for offset in range(NUM_PORTS)):
            return first
