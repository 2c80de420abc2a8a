"""Berth is killed while it creates and deletes instances, and with engines asleep; nothing is lost."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx

from tests.fake_engine import command
from tests.faults.journal import Journal
from tests.faults.scenario import Scenario
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

_ADOPTION_S = 2.0
_KILLS = 15


def killed_while_instances_come_and_go(directory: Path, journal: Journal, seed: int) -> None:
    """During constant creations, deletions and requests: what Berth has answered remains true."""
    dice = random.Random(seed)
    berths = _berths(directory)
    expected = _Expected()
    slowest_s, slowest_total_s, seen = 0.0, 0.0, 0
    try:
        for _kill in range(_KILLS):
            began = time.monotonic()
            berth = berths.begin()
            with berth.client() as client:
                slowest_s = max(slowest_s, expected.wait_until_adopted(client, berth.output))
                slowest_total_s = max(slowest_total_s, time.monotonic() - began)
                last = last_event_id(client, after=seen)
                assert last >= seen, (last, seen)
                seen = last
            with berth.client(timeout_s=20) as client:
                busy = threading.Thread(
                    target=expected.keep_busy, args=(client, random.Random(dice.random()))
                )
                busy.start()
                time.sleep(dice.uniform(0, 1.0))
                kill(berth)
                busy.join()
        berth = berths.begin()
        with berth.client() as client:
            expected.wait_until_adopted(client, berth.output)
        end(berth)
        assert berths.survivors() == []
        assert slowest_s < _ADOPTION_S, slowest_s
        journal.note(f"adopted within {slowest_s:.2f} s of serving, {slowest_total_s:.2f} s of starting")
    finally:
        berths.close()


class _Expected:
    """The instances that must exist, by Berth's responses."""

    def __init__(self) -> None:
        self.pids: dict[str, int | None] = {}  # of instances; None = possibly without a process yet
        self._uncertain: str | None = None  # its creation or deletion was not answered
        self._count = 0

    def wait_until_adopted(self, client: httpx.Client, output: Callable[[], str]) -> float:
        """Seconds until all expected instances run, under their old pids, and no others exist."""
        took_s = eventually(
            lambda: are_running(client, *self.pids), lambda: f"{self.pids} {output()[-3000:]}"
        )
        found = records(client)
        for name, pid in self.pids.items():
            assert pid in (None, found[name]["pid"]), f"{name} was {pid}: {found[name]} {output()[-3000:]}"
        if self._uncertain is not None and client.delete(f"/instances/{self._uncertain}").status_code == 204:
            del found[self._uncertain]
        assert found.keys() == self.pids.keys(), (list(found), list(self.pids))
        self._uncertain = None
        self.pids = {name: found[name]["pid"] for name in self.pids}
        return took_s

    def keep_busy(self, client: httpx.Client, dice: random.Random) -> None:
        """Send requests until Berth is killed."""
        try:
            while True:
                if len(self.pids) > 3:
                    self._uncertain = dice.choice(list(self.pids))
                    pid = self.pids.pop(self._uncertain)
                    assert client.delete(f"/instances/{self._uncertain}").status_code == 204, pid
                self._count += 1
                name = self._uncertain = f"e{self._count}"
                create(client, name, wait=0)
                self.pids[name], self._uncertain = None, None
                if dice.random() < 0.5:
                    client.post(f"/proxy/{name}/v1/completions", json={"prompt": "a"})
                    self.pids[name] = records(client)[name]["pid"]
        except httpx.TransportError:
            return


def killed_with_all_status_files_lost(directory: Path, _: Journal, __: int) -> None:
    """The engines are identified by their processes, and adopted."""
    berths = _berths(directory)
    catalog = directory / "models.yaml"
    models = {"ready": {"engine": "command", "command": command(), "preload": True}}
    catalog.write_text(json.dumps({"models": models}))
    try:
        first = berths.begin(MODELS_FILE=str(catalog))
        with first.client() as client:
            create(client, "one")
            eventually(lambda: _pids(client).keys() >= {"one", "ready"}, first.output)
            before = _pids(client)
            kill(first)
            shutil.rmtree(directory / "state" / "run")
            second = berths.begin(MODELS_FILE=str(catalog))
            eventually(lambda: _pids(client).keys() == before.keys(), second.output)
            assert _pids(client) == before, second.output()
            assert len(list((directory / "state" / "run").glob("*.json"))) == 2
            end(second)
        assert berths.survivors() == []
    finally:
        berths.close()


def _pids(client: httpx.Client) -> dict[str, int]:
    """Pids of the running instances, by model or instance name."""
    running = [record for record in records(client).values() if record["status"] == "running"]
    return {record["profile"] or record["instance_id"]: record["pid"] for record in running}


def killed_with_an_embedded_engine_awake_and_asleep(directory: Path, _: Journal, __: int) -> None:
    berths = _berths(directory)
    model = {"name": "demo", "model_name": "berth-demo", "params": {"enable_sleep_mode": True}}
    short = {"model": "berth-demo", "prompt": "a", "max_tokens": 4}
    long = {**short, "max_tokens": 2000, "stream": True, "ignore_eos": True}
    try:
        first = berths.begin()
        with first.client() as client:
            pid = client.post("/instances", json=model, params={"wait": 60}).json()["pid"]
            with client.stream("POST", "/v1/completions", json=long) as answer:
                chunks = answer.iter_raw()
                assert b"data: " in next(chunks)
                kill(first)
                assert _is_cut(chunks)

            second = berths.begin()
            assert client.post("/v1/completions", json=short).status_code == 200
            running = partial(_metric, client, "vllm:num_requests_running")
            eventually(lambda: running() == 0, second.output)  # the running request was aborted
            assert client.post("/instances/demo/sleep").json()["status"] == "sleeping"
            kill(second)

            third = berths.begin()
            eventually(lambda: records(client)["demo"]["status"] == "sleeping", third.output)
            assert records(client)["demo"]["sleep_level"] == 1
            kill(third)

            third = berths.begin()  # it is woken during its adoption
            assert client.post("/instances/demo/wake").json()["status"] == "running", third.output()
            assert client.post("/v1/completions", json=short).status_code == 200
            assert records(client)["demo"]["pid"] == pid
            kill(third)

            assert is_alive(pid)
            fourth = berths.begin(ON_SHUTDOWN="detach")
            eventually(partial(are_running, client, "demo"), fourth.output)
            end(fourth)
            assert is_alive(pid)
            fifth = berths.begin()
            eventually(partial(are_running, client, "demo"), fifth.output)
            assert records(client)["demo"]["pid"] == pid
            end(fifth)
        assert berths.survivors() == []
    finally:
        berths.close()


def _berths(directory: Path) -> Berths:
    directory.mkdir(parents=True)
    return Berths(directory)


def _is_cut(chunks: Iterator[bytes]) -> bool:
    try:
        for _ in chunks:
            pass
    except httpx.RemoteProtocolError:
        return True
    return False


def _metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/proxy/demo/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


SCENARIO = Scenario(
    "adoption",
    isolated=(
        killed_while_instances_come_and_go,
        killed_with_all_status_files_lost,
        killed_with_an_embedded_engine_awake_and_asleep,
    ),
)
