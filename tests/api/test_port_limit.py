"""VLLM_MAX_INSTANCES also limits the ports: a request that needs one more waits."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.test_gateway import ask, berth_with, client_of
from tests.berth_process import free_port_range
from tests.fake_engine import command

MODELS: dict[str, Any] = {name: {"command": command()} for name in ("a", "b", "c")}
PINNED = {"pinned": True, **MODELS["a"]}


@contextmanager
def listening(*ports: int) -> Iterator[None]:
    """Another program on these ports."""
    with ExitStack() as stack:
        for port in ports:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", port))
            listener.listen()
        yield


def in_flight(client: httpx.Client, model: str) -> int:
    number: int = client.get(f"/models/{model}").json()["in_flight"]
    return number


@pytest.mark.parametrize("is_foreign", [False, True], ids=["all taken", "the others taken by strangers"])
def test_a_request_waits_for_a_port_and_busy_instances_are_drained(tmp_path: Path, is_foreign: bool) -> None:
    base = free_port_range(3)
    settings = {
        "VLLM_BASE_PORT": str(base),
        "VLLM_MAX_INSTANCES": "3" if is_foreign else "1",
        "MIN_RESIDENCY": "0",
        "MAX_WAIT": "1",
    }
    with (
        listening(*([base, base + 2] if is_foreign else [])),
        berth_with(tmp_path, MODELS, **settings) as berth,
        client_of(berth) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        assert ask(client, "a").status_code == 200
        long = pool.submit(ask, client, "a", delay=3)
        while not in_flight(client, "a"):
            time.sleep(0.02)
        asked = time.monotonic()
        waiting = [pool.submit(ask, client, model) for model in ("b", "c", "b")]
        assert [one.result().status_code for one in waiting] == [200] * 3
        assert time.monotonic() - asked > 2, "the one in use was not disturbed"
        assert long.result().status_code == 200
        (live,) = client.get("/instances").json()["data"]
        assert live["port"] == (base + 1 if is_foreign else base)
        assert client.get("/models/b").json()["error"] is None
        # The idle one goes at once.
        asked = time.monotonic()
        assert ask(client, "a").status_code == 200
        assert time.monotonic() - asked < 10


@pytest.mark.parametrize("is_foreign", [False, True], ids=["all pinned", "all taken by strangers"])
def test_the_error_says_why_no_port_can_become_free(tmp_path: Path, is_foreign: bool) -> None:
    base = free_port_range(2)
    settings = {"VLLM_BASE_PORT": str(base), "VLLM_MAX_INSTANCES": "2", "MAX_WAIT": "0.2"}
    models = MODELS if is_foreign else {"a": PINNED, "b": PINNED, "c": MODELS["c"]}
    with (
        listening(*([base, base + 1] if is_foreign else [])),
        berth_with(tmp_path, models, **settings) as berth,
        client_of(berth) as client,
    ):
        if not is_foreign:
            assert [ask(client, name).status_code for name in "ab"] == [200, 200]
        refused = ask(client, "c")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_capacity")
        message = refused.json()["error"]["message"]
        if is_foreign:
            assert f"no port in {base}-{base + 1} is free" in message
            assert "2 by other programs; set another VLLM_BASE_PORT" in message
        else:
            assert "a (pinned) keeps one; b (pinned) keeps one" in message
            assert "raise VLLM_MAX_INSTANCES" in message
