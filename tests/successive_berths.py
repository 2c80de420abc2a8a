"""One Berth after another in one folder, as an operator's machine sees them, and what to ask of each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.berth_process import ROOT, BerthProcess
from tests.fake_engine import command

PATIENCE_S = 30.0


class Berths:
    """One Berth after another, in one folder, on the same ports."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        """`root`: where app.py is."""
        self.folder = folder
        self._root = root
        self._all: list[BerthProcess] = []

    def begin(self, **settings: str) -> BerthProcess:
        """The next one, once it serves."""
        berth = self.launch(**settings)
        berth.wait_until_serving()
        return berth

    def launch(self, **settings: str) -> BerthProcess:
        settings["VLLM_MAX_INSTANCES"] = "20"  # some of the ports may be taken by the others on this machine
        if self._all:
            first = self._all[0]
            settings = {"APP_PORT": str(first.port), "VLLM_BASE_PORT": str(first.base_port), **settings}
        self._all.append(BerthProcess(self.folder, root=self._root, **settings))
        return self._all[-1]

    def survivors(self) -> list[psutil.Process]:
        return [process for berth in self._all for process in berth.survivors()]

    def close(self) -> None:
        for berth in reversed(self._all):
            berth.close()


def kill(berth: BerthProcess) -> None:
    os.kill(berth.pid, signal.SIGKILL)
    berth.wait()


def end(berth: BerthProcess) -> None:
    berth.terminate()
    assert berth.wait() == 0, berth.output()


def create(client: httpx.Client, name: str, *flags: str, wait: float = PATIENCE_S) -> dict[str, Any]:
    body = {"name": name, "model_name": "fake", "engine": "command", "command": command(*flags)}
    answer = client.post("/instances", json=body, params={"wait": wait})
    assert answer.status_code == 201, answer.text
    record: dict[str, Any] = answer.json()
    return record


def records(client: httpx.Client) -> dict[str, dict[str, Any]]:
    listed = client.get("/instances", params={"all": "true"}).json()["data"]
    return {one["instance_id"]: one for one in listed}


def are_running(client: httpx.Client, *names: str) -> bool:
    found = records(client)
    return all(found[name]["status"] == "running" for name in names)


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)  # nobody reaps in a bare container
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool], message: Callable[[], object]) -> float:
    """Seconds until it came true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_S, message()
        time.sleep(0.02)
    return time.monotonic() - began


def last_event_id(client: httpx.Client, after: int = 0) -> int:
    """Of all that is kept: the stream says what there is, and then waits."""
    last = after
    with client.stream("GET", "/events", headers={"Last-Event-ID": str(after)}, timeout=0.3) as stream:
        try:
            for line in stream.iter_lines():
                if line.startswith("id: "):
                    last = int(line.removeprefix("id: "))
        except httpx.ReadTimeout:
            return last
    return last
