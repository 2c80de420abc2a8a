"""LoRA adapters of the embedded engine through Berth: who may load them, what is refused, their names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import running_berth
from tests.broken_checkpoints import DEMO
from tests.engine.offline.lora_files import write_adapter

USER, ADMIN = ({"authorization": f"Bearer {key}-key"} for key in ("user", "admin"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("adapters")
    params = {"enable_lora": True, "max_model_len": 128, "num_threads": 1}
    models = {"assistant": {"path": str(DEMO), "params": params, "aliases": ["helper"]}}
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    settings = {
        "MODELS_FILE": str(folder / "models.yaml"),
        "API_KEYS": "user-key",
        "ADMIN_API_KEYS": "admin-key",
    }
    with running_berth(folder, **settings) as berth, berth.client() as client:
        yield client


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(DEMO, tmp_path_factory.mktemp("adapter") / "sql", targets=("q_proj",))


def load(client: httpx.Client, name: str, path: Path, headers: dict[str, str] = ADMIN, **more: Any) -> Any:
    body = {"model": "assistant", "lora_name": name, "lora_path": str(path), **more}
    return client.post("/v1/load_lora_adapter", json=body, headers=headers, timeout=90)


def ask(client: httpx.Client, model: str) -> Any:
    body = {"model": model, "prompt": "a", "max_tokens": 1}
    return client.post("/v1/completions", json=body, headers=USER, timeout=90)


def test_only_admins_may_load_and_unload(client: httpx.Client, adapter: Path) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        body = {"model": "assistant", "lora_name": "sql", "lora_path": str(adapter)}
        assert client.post(path, json=body, headers=USER).status_code == 403
        assert client.post(path, json=body).status_code == 401


def test_an_adapter_is_requested_behind_its_models_name_until_it_is_unloaded(
    client: httpx.Client, adapter: Path
) -> None:
    assert ask(client, "assistant:sql").status_code == 404
    assert load(client, "sql", adapter).status_code == 200
    for model in ("assistant:sql", "helper:sql"):
        answer = ask(client, model)
        assert (answer.status_code, answer.json()["model"]) == (200, "sql"), answer.text
    body = {"model": "assistant", "lora_name": "sql"}
    assert client.post("/v1/unload_lora_adapter", json=body, headers=ADMIN).status_code == 200
    answer = ask(client, "assistant:sql")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "'sql'" in answer.json()["error"]["message"]


def test_an_adapter_that_cannot_be_loaded_is_refused_with_the_reason(
    client: httpx.Client, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    huge = write_adapter(DEMO, tmp_path / "huge", targets=("q_proj",))
    config = json.loads((huge / "adapter_config.json").read_text())
    (huge / "adapter_config.json").write_text(json.dumps({**config, "r": 10**9}))
    for name, path, param, says in (
        ("a", tmp_path / "gone", "lora_path", "There is no directory"),
        ("a", tmp_path / "file", "lora_path", "is a file"),
        ("a", Path("/etc"), "lora_path", "has no adapter_config.json"),
        ("a", tmp_path / "empty", "lora_path", "has no adapter_config.json"),
        ("a", huge, "lora_path", "its rank is 1000000000, and --max-lora-rank is 16"),
        ("../a", adapter, "lora_name", "reads like a path"),
        ("a:b", adapter, "lora_name", "has a colon"),
        ("assistant", adapter, "lora_name", "is a name of the served model"),
    ):
        answer = load(client, name, path)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), answer.text
        assert says in error["message"], error
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: load(client, "twice", adapter).status_code, range(2)))
    assert sorted(answers) == [200, 400]
