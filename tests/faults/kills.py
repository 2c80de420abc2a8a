"""Berth is killed at random moments under load and started again; its engines keep running."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests import fake_engine
from tests.berth_process import BerthProcess, free_port, is_free
from tests.faults.environment import eventually, free_ports, request
from tests.faults.journal import Journal, Outcome, Reply
from tests.faults.scenario import Scenario

_NUM_KILLS = 30
_NUM_CLIENTS = 10
_NAMES = ("first", "second")
_TOKENS = 15
_TIMEOUT_S = 30.0
_ADOPTED_S = 2.0  # after Berth serves; twice that is allowed on a shared machine
_MARK = "BERTH_FAULTS_KILLS"


class BerthSuccession:
    """Successive Berth processes with the same settings."""

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        self._number = 0
        directory.mkdir(parents=True)
        (directory / "models.yaml").write_text('{"models": {}}')
        self._mark = os.urandom(6).hex()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.first_port = free_ports()
        self._settings = {
            "APP_PORT": str(self.port),
            "VLLM_BASE_PORT": str(self.first_port),
            "LOG_DIR": str(directory / "logs"),
            "STATE_DIR": str(directory / "state"),
            "MODELS_FILE": str(directory / "models.yaml"),
            "MODEL_DIRS": str(directory / "no-models"),
            "HEALTH_INTERVAL": "0.5",
            _MARK: self._mark,
            **(settings or {}),
        }
        self.berth = self._spawn()

    def _spawn(self) -> BerthProcess:
        self._number += 1
        directory = self._directory / f"berth-{self._number}"
        directory.mkdir()
        return BerthProcess(directory, **self._settings)

    def kill(self) -> None:
        os.kill(self.berth.pid, signal.SIGKILL)
        self.berth.wait()

    def begin_next(self) -> None:
        self.berth = self._spawn()

    def ask(self, method: str, path: str, body: Any = None) -> Reply:
        return request(self.url, method, path, body, _TIMEOUT_S)

    def create(self, name: str, *flags: str, wait_s: float = _TIMEOUT_S) -> Reply:
        command = fake_engine.command(*flags)
        body = {"model_name": name, "name": name, "engine": "command", "command": command, "timeout": 0}
        return self.ask("POST", f"/instances?wait={wait_s}" if wait_s else "/instances", body)

    def record(self, name: str) -> dict[str, Any]:
        reply = self.ask("GET", f"/instances/{name}")
        assert reply.status == 200, str(reply)
        record: dict[str, Any] = json.loads(reply.body)
        return record

    def is_running(self, name: str) -> bool:
        return bool(self.record(name)["status"] == "running")

    def engines(self) -> dict[int, str]:
        """The processes of all Berths of this succession, except the current Berth itself."""
        found = {}
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                is_ours = process.environ().get(_MARK) == self._mark
                if is_ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != self.berth.pid:
                    found[process.pid] = line
            except (psutil.Error, OSError):
                continue
        return found

    def end(self) -> None:
        """End Berth in order, and check that nothing is left."""
        self.berth.terminate()
        assert self.berth.wait() == 0, self.berth.output()[-3000:]
        assert not self.engines(), f"processes left: {self.engines()}"
        assert is_free(self.port), "Berth's port is not free"
        assert all(is_free(self.first_port + offset) for offset in range(5)), "a port is not free"

    def close(self) -> None:
        self.berth.close()
        for pid in self.engines():
            psutil.Process(pid).kill()


class _Load:
    """Clients that keep sending requests. Distinguishes failures while Berth is down from all others."""

    def __init__(self, succession: BerthSuccession, journal: Journal, seed: int) -> None:
        self._succession = succession
        self._ledger = journal
        self._seed = seed
        self._stop = threading.Event()
        self._outages: list[tuple[float, float]] = []  # from a kill until the next Berth serves
        self._pending: list[tuple[float, float, Reply]] = []
        self._pool = ThreadPoolExecutor(_NUM_CLIENTS)
        self._jobs = [self._pool.submit(self._client, random.Random(seed + n)) for n in range(_NUM_CLIENTS)]

    def record_outage(self, since: float, until: float) -> None:
        self._outages.append((since, until))

    def finish(self) -> None:
        """Count all requests. Raises the exceptions of the clients."""
        self._stop.set()
        for job in self._jobs:
            job.result()
        self._pool.shutdown()
        for began, ended, reply in self._pending:
            self._ledger.count(self._fate(began, ended, reply), f"outside of any outage: {reply}")

    def _fate(self, began: float, ended: float, reply: Reply) -> Outcome:
        if reply.outcome in (Outcome.ANSWERED, Outcome.REFUSED):
            return reply.outcome
        is_in_outage = any(began <= until and ended >= since for since, until in self._outages)
        return Outcome.CUT if is_in_outage else Outcome.LOST

    def _client(self, dice: random.Random) -> None:
        while not self._stop.is_set():
            is_stream = dice.random() < 0.6
            body = {"stream": is_stream, "max_tokens": _TOKENS, "delay": dice.choice((0, 0, 0.1))}
            began = time.monotonic()
            reply = self._succession.ask("POST", f"/proxy/{dice.choice(_NAMES)}/v1/completions", body)
            if reply.never_sent:
                self._stop.wait(0.2)  # Berth is down
                continue
            self._pending.append((began, time.monotonic(), reply))
            if reply.status == 200 and (reply.is_done or not (is_stream or reply.broken)):
                assert reply.body.count(b"token") >= _TOKENS, f"an incomplete reply looks complete: {reply}"
            if is_stream and reply.status == 200 and not reply.is_done:
                assert reply.broken, f"an incomplete stream ended cleanly: {reply}"
            self._stop.wait(dice.uniform(0, 0.05))


def berth_killed_at_random_moments(directory: Path, journal: Journal, seed: int) -> None:
    """Thirty times: while it serves or adopts, and while an engine starts, dies or is deleted."""
    dice = random.Random(seed)
    succession = BerthSuccession(directory)
    try:
        succession.berth.wait_until_serving()
        for name in _NAMES:
            made = succession.create(name, "--chunk-delay", "0.02")
            assert made.status == 201, str(made)
        pids = {name: succession.record(name)["pid"] for name in _NAMES}
        load = _Load(succession, journal, seed)
        slowest_s = 0.0
        for number in range(_NUM_KILLS):
            slowest_s = max(slowest_s, _kill_and_restart(succession, load, dice, pids, number))
        load.finish()
        assert slowest_s < 2 * _ADOPTED_S, f"an adoption took {slowest_s:.1f} s"
        journal.note(f"adoption: at most {slowest_s:.2f} s after Berth serves, {_NUM_KILLS} times")
        succession.end()
    finally:
        succession.close()


def _kill_and_restart(
    succession: BerthSuccession, load: _Load, dice: random.Random, pids: dict[str, int], number: int
) -> float:
    """Returns the seconds until all engines are adopted."""
    time.sleep(dice.uniform(0, 0.8))
    young = f"young-{number}" if number % 5 == 4 else None
    if young is not None:
        succession.create(young, "--slow-start", "0.7", wait_s=0)
        time.sleep(dice.uniform(0, 0.5))
    victim = _NAMES[0] if number % 7 == 6 else None
    killed_at = time.monotonic()
    succession.kill()
    if victim is not None:
        psutil.Process(pids[victim]).kill()
    succession.begin_next()
    if dice.random() < 0.3:  # during its start or the adoption
        time.sleep(dice.uniform(0.1, 1.2))
        succession.kill()
        succession.begin_next()
    succession.berth.wait_until_serving()
    serves_at = time.monotonic()
    load.record_outage(killed_at - 0.05, serves_at + 0.05)
    for name in _NAMES:
        if name == victim:
            continue
        eventually(f"{name} is adopted", partial(succession.is_running, name), 10)
        record = succession.record(name)
        assert record["pid"] == pids[name], f"{name} was started again: {record}"
        reply = succession.ask("POST", f"/proxy/{name}/v1/completions", {"stream": True, "max_tokens": 3})
        assert reply.is_done, str(reply)
    adopted_s = time.monotonic() - serves_at
    if victim is not None:
        _check_victim(succession, load, victim, pids)
    if young is not None:
        _check_young(succession, young)
    expected = {f"--model {name}" for name in _NAMES}
    eventually(
        "each engine runs once",
        lambda: sorted(_models(succession)) == sorted(expected),
    )
    return adopted_s


def _models(succession: BerthSuccession) -> list[str]:
    """`--model NAME` of each engine's process."""
    lines = [line for line in succession.engines().values() if "fake_engine" in line and "shim" not in line]
    return [f"--model {line.split('--model ')[1].split()[0]}" for line in lines]


def _check_victim(succession: BerthSuccession, load: _Load, victim: str, pids: dict[str, int]) -> None:
    """It died while Berth was down: Berth must notice, and start it again by policy or on request."""
    began = time.monotonic()
    old = pids[victim]
    eventually("its death is noticed", lambda: succession.record(victim)["pid"] != old)
    eventually("it runs or has failed", lambda: succession.record(victim)["status"] in ("running", "failed"))
    if succession.record(victim)["status"] != "running":
        succession.ask("POST", f"/instances/{victim}/start?wait=20")
    eventually("it runs again", lambda: succession.record(victim)["status"] == "running")
    pids[victim] = succession.record(victim)["pid"]
    load.record_outage(began - 5, time.monotonic())


def _check_young(succession: BerthSuccession, young: str) -> None:
    """It was starting: it must run, as one process, and can be deleted."""
    reply = succession.ask("GET", f"/instances/{young}")
    if reply.status == 404:
        return  # Berth was killed before it answered the creation
    eventually("it runs or has failed", lambda: succession.record(young)["status"] in ("running", "failed"))
    record = succession.record(young)
    assert record["status"] == "running", record
    gone = succession.ask("DELETE", f"/instances/{young}?force=true")
    assert gone.status == 204, str(gone)


SCENARIO = Scenario("kills", isolated=(berth_killed_at_random_moments,))
