"""Berth is killed or detaches, and its successor adopts the engines. Real processes throughout."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.berth_process import BerthProcess, free_port
from tests.fake_engine import command
from tests.successive_berths import (
    Berths,
    are_running,
    create,
    end,
    eventually,
    is_alive,
    kill,
    last_event_id,
    records,
)

ADOPTION_S = 2.0  # promised: from a serving Berth to requests to its engines


@pytest.fixture
def berths(tmp_path: Path) -> Iterator[Berths]:
    berths = Berths(tmp_path)
    try:
        yield berths
    finally:
        berths.close()


@contextmanager
def under_load(berth: BerthProcess, path: str) -> Iterator[list[str]]:
    """Continuous streams, and how each ended."""
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


def test_engines_outlive_the_server(berths: Berths) -> None:
    """Killed, and then detached. With running, loading and dead engines, orphans and foreign processes."""
    first = berths.begin()
    keyed = {"model_name": "fake", "engine": "command", "command": command()}
    with first.client() as client, subprocess.Popen(["/bin/sleep", "600"]) as stranger:
        stray: subprocess.Popen[bytes] | None = None
        try:
            create(client, "failing", "--fail-with", "bad luck", wait=0)
            eventually(lambda: records(client)["failing"]["status"] == "failed", lambda: records(client))
            for name in ("one", "dead", "recycled"):
                create(client, name)
            create(client, "loading", "--slow-start", "2", "--chatty-start", wait=0)
            key = {"Idempotency-Key": "the same"}
            answer = client.post("/instances", json=keyed, headers=key, params={"wait": 30})
            assert answer.status_code == 201, answer.text
            kept = answer.json()
            eventually(lambda: records(client)["loading"]["pid"] is not None, lambda: records(client))
            before, seen = records(client), last_event_id(client)
            with under_load(first, "/proxy/one/v1/completions") as ends:
                eventually(lambda: len(ends) > 4, lambda: ends)
                kill(first)
            assert any(how not in ("whole", "short") for how in ends)  # clients see a broken connection

            os.kill(before["dead"]["pid"], signal.SIGKILL)
            _give_away_its_pid(berths.folder, "recycled", stranger.pid)
            stray = _stray(berths.folder)

            second = berths.begin(ON_SHUTDOWN="detach")
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

            # Dead and lost instances fail with their cause; both were running, so they are restarted.
            for name in ("dead", "recycled"):
                eventually(partial(are_running, client, name), second.output)
                assert records(client)[name]["pid"] != before[name]["pid"]
            assert "SIGKILL" in second.output()
            assert stranger.poll() is None
            assert not is_alive(before["recycled"]["pid"])
            assert stray.wait(30) == -signal.SIGKILL

            eventually(partial(are_running, client, "loading"), second.output)
            assert records(client)["loading"]["pid"] == before["loading"]["pid"]
            log = client.get("/instances/loading/logs").text
            assert "loading\n" in log and "listening on" in log.splitlines()[-1]
            assert last_event_id(client, after=seen) > seen
            _check_detach(berths, client, second)
        finally:
            stranger.kill()
            if stray is not None:
                stray.kill()
                stray.wait()


def test_of_an_engine_without_a_record_neither_process_nor_log_is_left(berths: Berths) -> None:
    """As when Berth is killed while its store is away, so that a new instance was never stored."""
    first = berths.begin()
    with first.client() as client:
        create(client, "one")
        pid = records(client)["one"]["pid"]
        kill(first)
    with sqlite3.connect(berths.folder / "state" / "berth.db") as database:
        assert database.execute("DELETE FROM records").rowcount == 1
    database.close()
    logs = berths.folder / "logs"
    assert (logs / "one.log").exists()
    second = berths.begin()
    eventually(lambda: not (is_alive(pid) or (logs / "one.log").exists()), second.output)
    assert list((berths.folder / "state" / "run").glob("*.json")) == []


def test_a_published_event_id_is_never_reused(berths: Berths) -> None:
    """Even if Berth is killed before storing it. A client that resumes gets all events since then."""
    first = berths.begin()
    with first.client() as client:
        create(client, "one")
        stored = last_event_id(client)
        with sqlite3.connect(berths.folder / "state" / "berth.db", isolation_level=None) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(httpx.ReadTimeout):
                client.post("/instances/one/stop", timeout=1)
            eventually(lambda: records(client)["one"]["status"] == "stopped", lambda: records(client))
            published = last_event_id(client, after=stored)
            kill(first)
        holder.close()
    assert published > stored
    second = berths.begin()
    with second.client() as client:
        client.delete("/instances/one", params={"force": True})
        create(client, "two")
        new = events(client, after=published)
        assert min(new) > published
        assert {("one", "instance.deleted"), ("two", "instance.state")} <= set(new.values())
        assert events(client, after=stored) == new


def events(client: httpx.Client, after: int) -> dict[int, tuple[str, str]]:
    """The instance and the type of each event since then, by id."""
    found: dict[int, tuple[str, str]] = {}
    fields: dict[str, str] = {}
    resuming = {"Last-Event-ID": str(after)}
    with (
        suppress(httpx.ReadTimeout),
        client.stream("GET", "/events", headers=resuming, timeout=0.3) as stream,
    ):
        for line in stream.iter_lines():
            name, _, fields[name] = line.partition(": ")
            if not line and "id" in fields:
                found[int(fields["id"])] = (json.loads(fields["data"])["instance_id"], fields["event"])
                fields = {}
    return found


def _give_away_its_pid(folder: Path, name: str, pid: int) -> None:
    """As if the engine and its shim had ended, and the pids had been reused by now."""
    path = folder / "state" / "run" / f"{name}.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps(status | {"engine_pid": pid, "shim_pid": pid}))


def _stray(folder: Path) -> subprocess.Popen[bytes]:
    """A process with this Berth's token but without a record."""
    owner = (folder / "state" / "berth-id").read_text()
    environment = {**os.environ, "BERTH_INSTANCE_TOKEN": f"{owner}.0123"}
    return subprocess.Popen(["/bin/sleep", "600"], env=environment)


def _check_detach(berths: Berths, client: httpx.Client, second: BerthProcess) -> None:
    """A request in flight is answered, engines keep running, and the next Berth has both and the usage."""
    pid = records(client)["one"]["pid"]
    refused = berths.launch(APP_PORT=str(free_port()))
    assert refused.wait() == 1, "one directory is one Berth's"
    assert "another Berth" in refused.output()

    asked = {"stream": True, "max_tokens": 50}
    with client.stream("POST", "/proxy/one/v1/completions", json=asked) as answer:
        second.terminate()
        assert answer.read().endswith(b"data: [DONE]\n\n")
    assert second.wait() == 0
    assert is_alive(pid)

    third = berths.begin()
    eventually(partial(are_running, client, "one", "loading"), third.output)
    assert records(client)["one"]["pid"] == pid
    (used,) = client.get("/usage", params={"model": "fake"}).json()["data"]
    assert used["key_id"] == "local"
    assert used["requests"] >= 2, used
    end(third)
    assert berths.survivors() == []
