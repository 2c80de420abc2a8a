"""LM Studio's REST API on a real Berth, in its documented shapes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.test_gateway import berth_with, client_of
from tests.berth_process import BerthProcess
from tests.fake_engine import command
from tests.fake_hub import WAIT_S, FakeHub, running_hub

pytestmark = pytest.mark.timeout(120)

KEYS = "ops: the-key-of-an-admin admin\nlimited: the-key-for-plain models=plain\n"
CATALOG: dict[str, Any] = {
    "plain": {"command": command()},
    "embeds": {"command": command("--embedding")},
    "broken": {"command": command("--fail-with", "no")},
}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("studio")
    (folder / "keys").write_text(KEYS)
    (folder / "keys").chmod(0o600)
    settings = {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.url, "API_KEYS_FILE": str(folder / "keys")}
    with berth_with(folder, CATALOG, **settings) as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with client_of(berth) as client:
        client.headers["Authorization"] = "Bearer the-key-of-an-admin"
        yield client
        client.post("/unload").raise_for_status()


def listed(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {one["key"]: one for one in client.get("/api/v1/models").json()["models"]}


def listed_v0(client: httpx.Client) -> dict[str, dict[str, Any]]:
    answer = client.get("/api/v0/models").json()
    assert answer["object"] == "list"
    return {one["id"]: one for one in answer["data"]}


def test_models_are_listed_as_documented(client: httpx.Client) -> None:
    demo, embeds = listed(client)["berth-demo"], listed(client)["embeds"]
    assert demo == {
        "type": "llm",
        "publisher": "",
        "key": "berth-demo",
        "display_name": "berth-demo",
        "architecture": "qwen3",
        "quantization": None,
        "size_bytes": demo["size_bytes"],
        "params_string": None,
        "loaded_instances": [],
        "max_context_length": 2048,
        "format": None,
        "capabilities": {"vision": False, "trained_for_tool_use": True},
        "description": None,
    }
    assert demo["size_bytes"] > 0
    assert (embeds["type"], "capabilities" in embeds) == ("embedding", False)
    old = listed_v0(client)
    assert (old["berth-demo"]["type"], old["embeds"]["type"]) == ("llm", "embeddings")
    assert (old["berth-demo"]["state"], old["berth-demo"]["arch"]) == ("not-loaded", "qwen3")
    assert client.get("/api/v0/models/berth-demo").json() == old["berth-demo"]
    assert client.get("/api/v0/models/none").status_code == 404


def test_load_and_unload(client: httpx.Client) -> None:
    loaded = client.post("/api/v1/models/load", json={"model": "plain", "flash_attention": True}).json()
    assert loaded.pop("load_time_seconds") >= 0
    assert loaded == {"type": "llm", "instance_id": "plain", "status": "loaded"}
    assert listed(client)["plain"]["loaded_instances"] == [{"id": "plain", "config": {}}]
    assert listed_v0(client)["plain"]["state"] == "loaded"
    again = client.post("/api/v1/models/load", json={"model": "plain", "echo_load_config": True}).json()
    assert again["load_config"] == {}
    chat = {"model": "plain", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    assert client.post("/api/v0/chat/completions", json=chat).json()["choices"]
    gone = client.post("/api/v1/models/unload", json={"instance_id": "plain"})
    assert gone.json() == {"instance_id": "plain"}
    assert listed(client)["plain"]["loaded_instances"] == []
    client.post("/models/plain/start", params={"wait": 30}).raise_for_status()
    (own,) = client.get("/models/plain").json()["replicas"]
    assert client.post("/api/v1/models/unload", json={"instance_id": own}).json() == {"instance_id": own}
    assert listed(client)["plain"]["loaded_instances"] == []


def test_what_a_load_cannot_change_is_refused_by_name(client: httpx.Client) -> None:
    for body in (
        {"context_length": 1024},
        {"config": {"context_length": 1024}},
        {"num_experts": 2},
    ):
        refused = client.post("/api/v1/models/load", json={"model": "berth-demo", **body})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"] in str(body)) == (400, True), error
    failed = client.post("/api/v1/models/load", json={"model": "broken"})
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "instance_failed")
    assert client.post("/api/v1/models/load", json={"model": "none"}).status_code == 404
    assert client.post("/api/v1/models/unload", json={"instance_id": "none"}).status_code == 404
    assert client.post("/api/v1/models/unload", json={"model": "plain"}).status_code == 422
    warned = client.post("/api/v1/models/load", json={"model": "plain", "wish": 1})
    assert "wish (unknown field)" in warned.headers["warning"]


def test_a_download_is_a_job(client: httpx.Client, hub: FakeHub) -> None:
    hub.stall_at = 2**20
    link = "https://huggingface.co/berth/demo"
    job = client.post("/api/v1/models/download", json={"model": link}).json()
    assert job["status"] == "downloading" and MOMENT.fullmatch(job["started_at"])
    assert (
        client.post("/api/v1/models/download", json={"model": "berth/demo"}).json()["job_id"] == job["job_id"]
    )
    assert hub.stalled.wait(WAIT_S)
    path = f"/api/v1/models/download/status/{job['job_id']}"
    while not (now := client.get(path).json())["downloaded_bytes"]:
        time.sleep(0.02)
    assert now["bytes_per_second"] > 0 and MOMENT.fullmatch(now["estimated_completion"])
    assert [one["job_id"] for one in client.get("/api/v1/models/download/status").json()["downloading"]] == [
        job["job_id"]
    ]
    hub.go_on.set()
    while (now := client.get(path).json())["status"] == "downloading":
        time.sleep(0.02)
    assert (now["status"], now["downloaded_bytes"]) == ("completed", now["total_size_bytes"]), now
    assert MOMENT.fullmatch(now["completed_at"])
    assert listed(client)["berth/demo"]["publisher"] == "berth"
    again = client.post("/api/v1/models/download", json={"model": "berth/demo"})
    assert again.json() == {"status": "already_downloaded"}


def test_a_failed_download_is_kept_as_failed(client: httpx.Client) -> None:
    job = client.post("/api/v1/models/download", json={"model": "berth/none"}).json()
    path = f"/api/v1/models/download/status/{job['job_id']}"
    while (now := client.get(path).json())["status"] == "downloading":
        time.sleep(0.02)
    assert now["status"] == "failed"
    assert now in client.get("/api/v1/models/download/status").json()["failed"]
    assert client.get("/api/v1/models/download/status/job_none").status_code == 404


def test_a_key_for_requests_reads_its_models_and_changes_nothing(berth: BerthProcess) -> None:
    with client_of(berth) as client:
        client.headers["Authorization"] = "Bearer the-key-for-plain"
        assert listed(client).keys() == listed_v0(client).keys() == {"plain"}
        assert client.get("/api/v0/models/embeds").status_code == 404
        for path in ("load", "unload", "download"):
            assert client.post(f"/api/v1/models/{path}", json={"model": "plain"}).status_code == 403
        assert client.get("/api/v1/models/download/status").status_code == 403
