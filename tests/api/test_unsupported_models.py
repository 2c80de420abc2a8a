"""Checkpoints that can't be run: listed with the reason, refused at once, never retried in a loop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import running_berth
from tests.broken_checkpoints import BROKEN, DEMO, changed, make_broken

FOUND = ["diffuses-text", "fp8", "adapter", "diffusion", "pickled", "lfs-pointer"]
NAMED = ["missing-shard", "no-config", "no-tokenizer"]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "a"},
    "/v1/embeddings": {"input": "a"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in FOUND:
        make_broken(kind, folder)
    return folder


@pytest.fixture(scope="module")
def client(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("berth")
    catalog: dict[str, Any] = {kind: {"path": str(make_broken(kind, folder))} for kind in NAMED}
    catalog["cut-short"] = {"path": str(make_broken("cut-short", folder))}
    (folder / "models.yaml").write_text(json.dumps({"models": catalog}))
    settings = {"MODEL_DIRS": str(models), "MODELS_FILE": str(folder / "models.yaml")}
    with (
        running_berth(folder, **settings, STATE_DIR=str(folder / "state")) as berth,
        httpx.Client(base_url=berth.url, timeout=60, trust_env=False) as client,
    ):
        yield client


def instances(client: httpx.Client) -> list[Any]:
    found: list[Any] = client.get("/instances", params={"all": "true"}).json()["data"]
    return found


@pytest.mark.parametrize("kind", [*FOUND, *NAMED])
def test_an_unsupported_model_is_listed_with_the_reason_and_refused_at_once(
    client: httpx.Client, kind: str
) -> None:
    for listing in ("/models", "/v1/models"):
        listed = {one.get("name", one.get("id")): one for one in client.get(listing).json()["data"]}
        assert BROKEN[kind].says in listed[kind]["problem"]
        assert BROKEN[kind].helps in listed[kind]["problem"]
    before = len(instances(client))
    for route, body in ROUTES.items():
        started = time.perf_counter()
        for _ in range(2):  # no back-off is counted down
            answer = client.post(route, json={"model": kind, **body})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (422, "unsupported_model"), answer.text
            assert error["message"] == f"model {kind!r} can't be run: {listed[kind]['problem']}"
            assert "retry-after" not in answer.headers
        assert time.perf_counter() - started < 2
    assert client.post(f"/models/{kind}/start").json()["error"]["code"] == "unsupported_model"
    assert len(instances(client)) == before


def test_a_supported_model_has_no_problem(client: httpx.Client) -> None:
    assert client.get("/v1/models").json()["data"]
    made = client.post("/instances", json={"model_name": str(DEMO), "name": "demo"})
    assert made.status_code == 201, made.text
    assert client.get(f"/models/{DEMO}").json()["problem"] is None
    client.delete("/instances/demo")


@pytest.mark.parametrize("kind", ["diffuses-text", "gguf", "missing-shard"])
def test_an_instance_of_it_is_not_created(client: httpx.Client, kind: str, tmp_path: Path) -> None:
    path = make_broken(kind, tmp_path)
    answer = client.post("/instances", json={"model_name": str(path)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unsupported_model")
    assert BROKEN[kind].says in answer.json()["error"]["message"]
    other = client.post("/instances", json={"model_name": str(path), "engine": "vllm"})
    assert other.json()["error"]["code"] == "invalid_spec", "checked by that engine; it is not installed here"


def test_a_gguf_file_is_distinguished_from_a_wrong_path(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    answer = client.post("/instances?wait=60", json={"model_name": str(tmp_path / "m.gguf")})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "unsupported_model")
    assert "m.gguf" in error["message"]
    missing = client.post("/instances", json={"model_name": str(tmp_path / "n.gguf")}).json()["error"]
    assert missing["code"] == "model_not_found"


def test_a_problem_only_the_engine_detects_is_reported_in_one_line(client: httpx.Client) -> None:
    for _ in range(2):
        answer = client.post("/v1/completions", json={"model": "cut-short", "prompt": "a"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "unsupported_model"), answer.text
        assert BROKEN["cut-short"].says in error["message"]
        assert "last log lines" not in error["message"]
    (failed,) = [one for one in instances(client) if one["profile"] == "cut-short"]
    assert (failed["status"], failed["error"]["class"]) == ("failed", "unsupported_model")
    assert failed["error"]["exit_code"] == 65
    record = client.get("/models/cut-short").json()
    assert BROKEN["cut-short"].says in record["error"]["message"]
    for problem in (record["problem"], client.get("/v1/models/cut-short").json()["problem"]):
        assert error["message"] == f"model 'cut-short' can't be run: {problem}", "as of those known before"


def test_once_its_files_are_repaired_it_runs(client: httpx.Client, models: Path) -> None:
    changed(architectures=["Qwen3ForCausalLM"])(models / "diffuses-text")
    assert client.get("/v1/models/diffuses-text").json()["problem"] is None
    answer = client.post("/v1/completions", json={"model": "diffuses-text", "prompt": "a", "max_tokens": 1})
    assert answer.status_code == 200, answer.text
