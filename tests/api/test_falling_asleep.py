"""Requests for a model that is being put to sleep."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.api.test_gateway import ask, berth_with, client_of, replicas
from tests.berth_process import BerthProcess

LONG = {"model": "berth-demo", "prompt": "a", "max_tokens": 300, "stream": True, "ignore_eos": True}
SHORT = {"model": "berth-demo", "prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    with berth_with(tmp_path_factory.mktemp("falling"), {}, MAX_IN_FLIGHT="1") as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with client_of(berth) as client:
        assert ask(client, "berth-demo").status_code == 200
        yield client


def eventually(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def streaming(client: httpx.Client) -> Iterator[None]:
    """A stream that ends with the block; an engine being put to sleep waits for it."""
    with client.stream("POST", "/v1/completions", json=LONG) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data:")
        yield
        assert [line for line in lines if line][-1] == "data: [DONE]"


def sleep(client: httpx.Client, pool: ThreadPoolExecutor) -> Any:
    put_to_sleep = pool.submit(client.post, "/models/berth-demo/sleep")
    eventually(lambda: client.get("/models/berth-demo").json()["state"] != "running")
    return put_to_sleep


def waits(client: httpx.Client) -> bool:
    page = client.get("/metrics?engines=false").text
    found = re.findall(r"^berth_instance_requests_waiting\{.*\} (\S+)$", page, re.MULTILINE)
    return any(float(number) for number in found)


def test_a_request_during_falling_asleep_gets_the_same_replica(client: httpx.Client) -> None:
    (record,) = replicas(client, "berth-demo")
    with ThreadPoolExecutor(2) as pool:
        with streaming(client):
            put_to_sleep = sleep(client, pool)
            assert client.get("/models/berth-demo").json()["in_flight"] == 1  # it waits for this stream
            asked = pool.submit(ask, client, "berth-demo")
        assert asked.result(timeout=30).status_code == 200
        assert put_to_sleep.result(timeout=30).status_code == 200
    assert [one["pid"] for one in replicas(client, "berth-demo")] == [record["pid"]]


def test_reads_do_not_keep_an_engine_from_falling_asleep(client: httpx.Client) -> None:
    """Otherwise another site's page could keep it awake."""
    (record,) = replicas(client, "berth-demo")
    own = f"/proxy/{record['instance_id']}"
    with ThreadPoolExecutor(1) as pool:
        with streaming(client):
            put_to_sleep = sleep(client, pool)
            assert client.get(f"{own}/v1/models").status_code == 200
            assert client.get(f"{own}/is_sleeping").json() == {"is_sleeping": False}
        assert put_to_sleep.result(timeout=30).status_code == 200
    assert client.get("/models/berth-demo").json()["state"] == "sleeping"
    assert client.get(f"{own}/v1/models").status_code == 200
    assert client.get("/models/berth-demo").json()["state"] == "sleeping"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_that_waits_for_capacity_is_served_before_the_sleep(
    client: httpx.Client, method: str
) -> None:
    """Nothing would wake it for them."""
    (record,) = replicas(client, "berth-demo")
    path = "models" if method == "GET" else "completions"
    with ThreadPoolExecutor(2) as pool:
        with streaming(client):
            body = None if method == "GET" else SHORT
            waiting = pool.submit(
                client.request, method, f"/proxy/{record['instance_id']}/v1/{path}", json=body
            )
            eventually(lambda: waits(client))
            put_to_sleep = sleep(client, pool)
        assert waiting.result(timeout=30).status_code == 200
        assert put_to_sleep.result(timeout=30).status_code == 200
