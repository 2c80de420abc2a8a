"""`POST /models/pull` of a real Berth, from a fake hub: tests can't reach the real one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.berth_process import BerthProcess, running_berth
from tests.fake_hub import DEMO, WAIT_S, FakeHub, running_hub

pytestmark = pytest.mark.timeout(120)

BODY = {"model": "berth/demo"}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def berth(hub: FakeHub, tmp_path: Path) -> Iterator[BerthProcess]:
    with running_berth(tmp_path, HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=hub.url) as berth:
        yield berth


def test_a_pull_as_ndjson(berth: BerthProcess) -> None:
    with berth.client() as client, client.stream("POST", "/models/pull", json=BODY) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["x-accel-buffering"] == "no"
        lines = [json.loads(line) for line in response.iter_lines()]
    assert lines[0] == {"status": "resolving"}
    assert {line["status"] for line in lines[1:-1]} == {"downloading"}
    assert set(lines[-1]) == {"status", "model", "path", "size_bytes"}
    assert (
        Path(lines[-1]["path"], "model.safetensors").read_bytes() == (DEMO / "model.safetensors").read_bytes()
    )


def test_an_error_is_the_last_line(berth: BerthProcess) -> None:
    with berth.client() as client:
        response = client.post("/models/pull", json={"model": "berth/none"})
    assert response.status_code == 200
    last = json.loads(response.text.splitlines()[-1])
    assert last["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "../secrets"}, "model"),
        ({"model": "/etc"}, "model"),
        ({"model": "a/b", "revision": "a/../b"}, "revision"),
        ({"model": 3}, "model"),
        ({}, "model"),
        ({"model": "a/b", "version": "1"}, "version"),
    ],
)
def test_invalid_requests_are_refused_before_the_download(
    berth: BerthProcess, hub: FakeHub, body: dict[str, Any], param: str
) -> None:
    with berth.client() as client:
        response = client.post("/models/pull", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param
    assert hub.asked == []


def test_closing_the_connection_ends_a_stalled_download(berth: BerthProcess, hub: FakeHub) -> None:
    hub.stall_at = 2**20
    with berth.client() as client, client.stream("POST", "/models/pull", json=BODY) as response:
        lines = response.iter_lines()
        assert next(lines)
        assert hub.stalled.wait(WAIT_S)
        assert len(berth.survivors()) == 1
    left = time.monotonic()
    while berth.survivors():
        assert time.monotonic() - left < WAIT_S
        time.sleep(0.02)
    assert time.monotonic() - left < 2.0


def test_berths_shutdown_is_the_last_line(berth: BerthProcess, hub: FakeHub) -> None:
    hub.stall_at = 2**20
    with berth.client() as client, client.stream("POST", "/models/pull", json=BODY) as response:
        lines = response.iter_lines()
        assert next(lines)
        assert hub.stalled.wait(WAIT_S)
        berth.terminate()
        last = [json.loads(line) for line in lines][-1]
    assert last["error"]["code"] == "shutting_down"
    assert berth.wait() == 0
    assert berth.survivors() == []


def test_only_admins_can_pull(hub: FakeHub, tmp_path: Path) -> None:
    keys = {"API_KEYS": "sk-inference", "ADMIN_API_KEYS": "sk-admin"}
    settings = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, **keys}
    with running_berth(tmp_path, **settings) as berth, berth.client() as client:
        refused = client.post("/models/pull", json=BODY, headers={"Authorization": "Bearer sk-inference"})
        assert refused.status_code == 403
        assert hub.asked == []
        allowed = client.post("/models/pull", json=BODY, headers={"Authorization": "Bearer sk-admin"})
        assert '"success"' in allowed.text
