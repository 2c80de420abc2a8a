"""One name, two kinds of engines: chats reach one that generates, embeddings one that pools."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.test_gateway import ask, berth_with, client_of
from tests.berth_process import ROOT
from tests.fake_engine import command

DEMO = ROOT / "models" / "berth-demo"


def embed(client: httpx.Client, model: str) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": model, "input": "a"})


def create(client: httpx.Client, model: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/instances", params={"wait": 60}, json={"model_name": model, **fields})
    assert answer.status_code == 201, answer.text
    record: dict[str, Any] = answer.json()
    return record


@pytest.mark.timeout(120)
def test_a_replica_serves_only_what_its_runner_can(tmp_path: Path) -> None:
    with berth_with(tmp_path, {}) as berth, client_of(berth) as client:
        pools = create(client, "berth-demo", params={"runner": "pooling"})
        assert embed(client, "berth-demo").status_code == 200
        with ThreadPoolExecutor(8) as pool:  # the first of them start the other kind
            chats = [pool.submit(ask, client, "berth-demo") for _ in range(4)]
            vectors = [pool.submit(embed, client, "berth-demo") for _ in range(4)]
            assert {one.result().status_code for one in chats + vectors} == {200}
        live = {one["instance_id"] for one in client.get("/instances").json()["data"]}
        assert len(live) == 2
        assert pools["instance_id"] in live

        client.post(f"/instances/{pools['instance_id']}/sleep").raise_for_status()
        assert ask(client, "berth-demo").status_code == 200
        assert client.get(f"/instances/{pools['instance_id']}").json()["status"] == "sleeping"
        assert embed(client, "berth-demo").status_code == 200

        # Starting the model by name uses the catalog's profile.
        client.post("/models/berth-demo/stop").raise_for_status()
        started = client.post("/models/berth-demo/start", params={"wait": 60}).json()
        assert started["replicas"] == sorted(live - {pools["instance_id"]})


def test_a_request_no_replica_can_serve_is_refused_with_the_needed_runner(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "models" / "pools-by-files")
    (tmp_path / "models" / "pools-by-files" / "modules.json").write_text("[]")
    models = {
        "pools": {"path": str(DEMO), "params": {"runner": "pooling"}},
        "converts": {"path": str(DEMO), "params": {"convert": "embed"}},
        "pools-by-files": {"path": str(tmp_path / "models" / "pools-by-files")},
        "embeds": {"command": command("--embedding")},
        "reranks": {"command": ["llama-server", "--port", "{port}", "--reranking"]},
        "tasks": {"command": ["vllm", "serve", "--task=embed", "--port", "{port}"]},
        "generates": {"path": str(DEMO)},
        "says-so": {"command": ["vllm", "serve", "--runner", "generate", "--port", "{port}"]},
    }
    with berth_with(tmp_path, models) as berth, client_of(berth) as client:
        for name in models:
            refused = embed(client, name) if name in ("generates", "says-so") else ask(client, name)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (404, "wrong_runner", "model")
            assert name in error["message"]
            has, wants = "computes embeddings or scores", "generates text"
            if name in ("generates", "says-so"):
                has, wants = wants, has
            assert f"needs an engine that {wants}" in error["message"]
            assert f"{has}:" in error["message"]
        assert client.get("/instances", params={"all": "true"}).json()["data"] == []


def test_another_model_with_a_catalogs_name_is_not_its_replica(tmp_path: Path) -> None:
    """Instances created manually, before or after the catalog has the name."""
    shutil.copytree(DEMO, tmp_path / "models" / "foreign")
    foreign = str(tmp_path / "models" / "foreign")
    models = {"mine": {"path": str(DEMO)}}
    with berth_with(tmp_path, models) as berth, client_of(berth) as client:
        for name in ("mine", "later"):
            create(client, foreign, name=f"foreign-{name}", params={"served_model_name": [name, f"x-{name}"]})
        assert ask(client, "later").status_code == 200
        (tmp_path / "models.yaml").write_text(json.dumps({"models": {**models, "later": models["mine"]}}))
        client.post("/reload").raise_for_status()
        for name in ("mine", "later"):
            assert client.get(f"/models/{name}").json()["replicas"] == []
            assert ask(client, f"x-{name}").status_code == 200, "it is reachable by its other name"
        same = create(client, str(DEMO), name="same", params={"served_model_name": "mine"})
        assert client.get("/models/mine").json()["replicas"] == [same["instance_id"]]
        assert ask(client, "mine").status_code == 200
        assert client.get("/instances/foreign-mine").json()["status"] == "running"
