"""Berth is killed, or detaches, and the next one goes on with its engines. Real processes throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.berth_process import BerthProcess
from tests.fake_engine import command

ADOPTION_S = 2.0  # from a serving Berth to its engines' requests; what is promised
PATIENCE_S = 30.0


class Berths:
    """One Berth after another, in one folder, on the same ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        self._all.append(BerthProcess(self.folder, **settings))
        return self._all[-1]

    def survivors(self) -> list[psutil.Process]:
        return [process for berth in self._all for process in berth.survivors()]

    def close(self) -> None:
        for berth in reversed(self._all):
            berth.close()


@pytest.fixture
def berths(tmp_path: Path) -> Iterator[Berths]:
    berths = Berths(tmp_path)
    try:
        yield berths
    finally:
        berths.close()


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
    with client.stream("GET", "/events", headers={"Last-Event-ID": str(after)}, timeout=1.0) as stream:
        try:
            for line in stream.iter_lines():
                if line.startswith("id: "):
                    last = int(line.removeprefix("id: "))
        except httpx.ReadTimeout:
            return last
    return last


@contextmanager
def under_load(berth: BerthProcess, path: str) -> Iterator[list[str]]:
    """Streams that flow all the time; how each of them ended."""
    ends: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        body = {"model": "fake", "prompt": "a", "max_tokens": 30, "stream": True}
        with berth.client(timeout_s=10) as client:
            while not stop.is_set():
                try:
                    with client.stream("POST", path, json=body) as answer:
                        ends.append("whole" if "[DONE]" in answer.read().decode() else "short")
                except httpx.TransportError as error:
                    ends.append(type(error).__name__)
                    time.sleep(0.05)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield ends
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_killed_berths_engines_are_taken_over(berths: Berths) -> None:
    """Those that run, that load, that have died meanwhile; strays are ended and strangers left alone."""
    first = berths.begin()
    keyed = {"model_name": "fake", "engine": "command", "command": command()}
    with first.client() as client, subprocess.Popen(["/bin/sleep", "600"]) as stranger:
        stray: subprocess.Popen[bytes] | None = None
        try:
            create(client, "failing", "--fail-with", "bad luck", wait=0)
            eventually(lambda: records(client)["failing"]["status"] == "failed", lambda: records(client))
            for name in ("one", "dead", "recycled"):
                create(client, name)
            create(client, "loading", "--slow-start", "3", "--chatty-start", wait=0)
            key = {"Idempotency-Key": "the same"}
            answer = client.post("/instances", json=keyed, headers=key, params={"wait": 30})
            assert answer.status_code == 201, answer.text
            kept = answer.json()
            eventually(lambda: records(client)["loading"]["pid"] is not None, lambda: records(client))
            before, seen = records(client), last_event_id(client)
            with under_load(first, "/proxy/one/v1/completions") as ends:
                eventually(lambda: len(ends) > 4, lambda: ends)
                kill(first)
            assert any(how not in ("whole", "short") for how in ends)  # clients are told, by a cut connection

            os.kill(before["dead"]["pid"], signal.SIGKILL)
            _give_away_its_pid(berths.folder, "recycled", stranger.pid)
            stray = _stray(berths.folder)

            second = berths.begin()
            alive = ("one", kept["instance_id"])
            took_s = eventually(lambda: are_running(client, *alive), second.output)
            assert took_s < ADOPTION_S, took_s
            after = records(client)
            assert list(after) == list(before)
            same = ("instance_id", "pid", "pid_start_time", "port", "created_at", "ready_at", "command")
            for name in alive:
                assert [after[name][one] for one in same] == [before[name][one] for one in same]
            assert client.get("/proxy/one/headers").status_code == 200
            by_name = client.post("/v1/completions", json={"model": "fake", "prompt": "a"})
            assert by_name.status_code == 200

            again = client.post("/instances", json=keyed, headers=key)
            assert (again.status_code, again.json()["instance_id"]) == (201, kept["instance_id"])
            assert after["failing"]["status"] == "failed"
            assert after["failing"]["error"] == before["failing"]["error"]

            # Dead and lost ones fail for what they died of; both were running, so they are started again.
            for name in ("dead", "recycled"):
                eventually(partial(are_running, client, name), second.output)
                assert records(client)[name]["pid"] != before[name]["pid"]
            assert "SIGKILL" in second.output()
            assert stranger.poll() is None
            assert not is_alive(before["recycled"]["pid"])
            assert stray.wait(PATIENCE_S) == -signal.SIGKILL

            eventually(partial(are_running, client, "loading"), second.output)
            assert records(client)["loading"]["pid"] == before["loading"]["pid"]
            log = client.get("/instances/loading/logs").text
            assert "loading\n" in log and "listening on" in log.splitlines()[-1]
            assert last_event_id(client, after=seen) > seen
            assert client.get("/usage").json() == {"object": "list", "data": []}
            end(second)
            assert berths.survivors() == []
        finally:
            stranger.kill()
            if stray is not None:
                stray.kill()
                stray.wait()


def _give_away_its_pid(folder: Path, name: str, pid: int) -> None:
    """As if the engine and its shim had ended, and the pids were somebody else's by now."""
    path = folder / "state" / "run" / f"{name}.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps(status | {"engine_pid": pid, "shim_pid": pid}))


def _stray(folder: Path) -> subprocess.Popen[bytes]:
    """A process with a token of this Berth's, of which no record tells."""
    owner = (folder / "state" / "berth-id").read_text()
    environment = {**os.environ, "BERTH_INSTANCE_TOKEN": f"{owner}.0123"}
    return subprocess.Popen(["/bin/sleep", "600"], env=environment)


def test_detached_engines_run_on_and_stopped_ones_are_remembered(berths: Berths) -> None:
    first = berths.begin(ON_SHUTDOWN="detach")
    with first.client() as client:
        pid = create(client, "one")["pid"]
        loading = create(client, "loading", "--slow-start", "2", wait=0)
        eventually(lambda: records(client)["loading"]["pid"] is not None, lambda: loading)
        second = berths.launch()
        assert second.wait() == 1, "one directory is one Berth's"
        assert "another Berth" in second.output()

        with client.stream(
            "POST", "/proxy/one/v1/completions", json={"stream": True, "max_tokens": 50}
        ) as one:
            first.terminate()
            assert one.read().endswith(b"data: [DONE]\n\n")
        assert first.wait() == 0
        assert is_alive(pid)

        third = berths.begin()
        eventually(partial(are_running, client, "one"), third.output)
        assert records(client)["one"]["pid"] == pid
        eventually(partial(are_running, client, "loading"), third.output)
        end(third)
        assert berths.survivors() == []

        fourth = berths.begin()
        stopped = records(client)["one"]
        assert (stopped["status"], stopped["port"], stopped["pid"]) == ("stopped", None, None)
        assert "listening on" in client.get("/instances/one/logs").text
        assert client.post("/instances/one/start", params={"wait": 30}).json()["status"] == "running"
        assert client.delete("/instances/one").status_code == 204
        kill(fourth)
        fifth = berths.begin()
        assert list(records(client)) == ["loading"]
        end(fifth)


def test_the_embedded_engine_is_taken_over_awake_and_asleep(berths: Berths) -> None:
    first = berths.begin()
    model = {"name": "demo", "model_name": "berth-demo", "params": {"enable_sleep_mode": True}}
    question = {"model": "berth-demo", "prompt": "a", "max_tokens": 4}
    with first.client() as client:
        pid = client.post("/instances", json=model, params={"wait": 60}).json()["pid"]
        long = {**question, "max_tokens": 2000, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=long) as answer:
            chunks = answer.iter_raw()
            assert b"data: " in next(chunks)
            kill(first)
            with pytest.raises(httpx.RemoteProtocolError):
                for _ in chunks:
                    pass

        second = berths.begin()
        assert client.post("/v1/completions", json=question).status_code == 200
        running = "vllm:num_requests_running"
        eventually(lambda: _metric(client, running) == 0, second.output)  # what flowed was aborted
        assert client.post("/instances/demo/sleep").json()["status"] == "sleeping"
        kill(second)

        third = berths.begin()
        eventually(lambda: records(client)["demo"]["status"] == "sleeping", third.output)
        assert records(client)["demo"]["sleep_level"] == 1
        assert client.post("/v1/completions", json=question).status_code == 200
        assert records(client)["demo"]["pid"] == pid
        end(third)
    assert berths.survivors() == []


def _metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/proxy/demo/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])
