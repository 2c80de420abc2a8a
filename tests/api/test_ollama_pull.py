"""Ollama's `/api/pull` and `/api/delete` of a real Berth, from a fake hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import running_berth
from tests.fake_hub import DEMO, running_hub

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp("ollama_pull")
    with running_hub() as hub:
        settings = {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.url, "MODEL_DIRS": str(folder)}
        with running_berth(folder, **settings) as berth, berth.client() as client:
            yield client


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def names(client: httpx.Client) -> list[str]:
    return [one["name"] for one in client.get("/api/tags").json()["models"]]


def test_a_download_with_progress_its_model_and_its_end(client: httpx.Client) -> None:
    lines = lines_of(client.post("/api/pull", content=b'{"name": "hf.co/berth/demo:latest"}'))
    assert [line["status"] for line in (lines[0], *lines[-2:])] == [
        "pulling manifest", "writing manifest", "success",
    ]  # fmt: skip
    bars = {line["digest"]: line for line in lines if "digest" in line}
    assert len(bars) == len(list(DEMO.iterdir()))
    for line in bars.values():
        assert line["digest"].startswith("sha256:") and line["status"].startswith("pulling ")
        assert line["completed"] == line["total"] > 0
    assert "berth/demo:latest" in names(client)
    assert client.post("/api/show", json={"model": "berth/demo"}).json()["details"]["family"] == "qwen3"
    again = client.post("/api/pull", json={"model": "berth/demo", "stream": False})
    assert (again.status_code, again.json()) == (200, {"status": "success"})
    deleted = client.request("DELETE", "/api/delete", json={"model": "hf.co/berth/demo"})
    assert deleted.status_code == 200
    assert "berth/demo:latest" not in names(client)


def test_a_failed_download(client: httpx.Client) -> None:
    *_, last = lines_of(client.post("/api/pull", json={"model": "berth/none"}))
    assert last.keys() == {"error"} and "berth/none" in last["error"]
    whole = client.post("/api/pull", json={"model": "berth/none", "stream": False})
    assert (whole.status_code, whole.json()) == (500, last)


@pytest.mark.parametrize("body", [{"model": "../a/b"}, {"model": "llama3.2"}, {}, {"model": 5}])
def test_a_name_that_cannot_be_pulled(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/api/pull", json=body)
    assert (answer.status_code, answer.json().keys()) == (400, {"error"})
