"""Stopping by HTTP: it clears a failure, and sleep at level 3 is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import running_berth
from tests.fake_engine import command


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("berth")
    models = {
        "broken": {"command": command("--fail-with", "no such thing")},
        "sound": {"command": command()},
    }
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    with running_berth(folder, MODELS_FILE=str(folder / "models.yaml")) as berth, berth.client() as client:
        yield client


def posted(client: httpx.Client, path: str, **params: Any) -> dict[str, Any]:
    answer = client.post(path, params=params)
    answer.raise_for_status()
    record: dict[str, Any] = answer.json()
    return record


def failed_replica(client: httpx.Client) -> str:
    """The instance created by a start of `broken`."""
    assert client.post("/models/broken/start", params={"wait": 30}).status_code == 503
    assert client.get("/models/broken").json()["state"] == "failed"
    records = client.get("/instances", params={"status": "failed"}).json()["data"]
    (replica,) = [one for one in records if one["profile"] == "broken"]
    assert replica["error"]["class"] == "crashed"
    instance_id: str = replica["instance_id"]
    return instance_id


def events_of(client: httpx.Client, instance_id: str) -> list[dict[str, Any]]:
    """All events of an instance, up to its last."""
    found = list[dict[str, Any]]()
    with client.stream("GET", "/events", headers={"Last-Event-ID": "0"}) as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and instance_id in line:
                found.append(json.loads(line.removeprefix("data: ")))
                if found[-1].get("status") == "stopped":
                    return found
    raise AssertionError(f"no event of a stop in {found}")


@pytest.mark.parametrize("by", ["model", "instance"])
def test_a_stop_clears_a_failure_and_its_back_off(client: httpx.Client, by: str) -> None:
    replica = failed_replica(client)
    refused = client.post("/v1/completions", json={"model": "broken", "prompt": "a"})
    assert "the next start is tried in" in refused.json()["error"]["message"]
    posted(client, "/models/broken/stop" if by == "model" else f"/instances/{replica}/stop")
    model = client.get("/models/broken").json()
    assert (model["state"], model["error"]) == ("stopped", None)
    record = client.get(f"/instances/{replica}").json()
    assert (record["status"], record["error"]) == ("stopped", None)
    again = client.post("/v1/completions", json={"model": "broken", "prompt": "a"})  # it is tried at once
    assert "no such thing" in again.json()["error"]["message"]
    assert "the next start" not in again.json()["error"]["message"]
    assert any("no such thing" in str(event.get("error")) for event in events_of(client, replica))
    client.delete(f"/instances/{replica}").raise_for_status()


def test_a_start_refused_without_an_instance_is_cleared_too(tmp_path: Path) -> None:
    models = {"big": {"model": "berth-demo"}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    settings = {"MODELS_FILE": str(tmp_path / "models.yaml"), "HOST_MEMORY": "0.0001"}
    with running_berth(tmp_path, **settings) as berth, berth.client() as client:
        assert client.post("/models/big/start", params={"wait": 30}).status_code == 503
        assert client.get("/models/big").json()["state"] == "failed"
        stopped = posted(client, "/models/big/stop")
        assert (stopped["state"], stopped["error"]) == ("stopped", None)


def test_sleep_at_level_3_is_a_stop(client: httpx.Client) -> None:
    """For any engine: this one can't sleep."""
    for path in ("/models/sound", None):
        assert posted(client, "/models/sound/start", wait=30)["state"] == "running"
        (replica,) = client.get("/models/sound").json()["replicas"]
        assert client.post(f"/instances/{replica}/sleep", params={"level": 2}).status_code == 409
        asleep = posted(client, f"{path or f'/instances/{replica}'}/sleep", level=3)
        assert asleep["state" if path else "status"] == "stopped"
        assert client.get(f"/instances/{replica}").json()["pid"] is None
    assert posted(client, "/models/sound/sleep", level=3)["state"] == "stopped"  # as `stop` is, of what has
    assert client.post("/models/sound/sleep", params={"level": 4}).status_code == 422
