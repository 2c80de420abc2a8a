"""The engine kind `llama` behind a real Berth, with a fake llama-server: started, refused, explained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import running_berth
from tests.fake_engine import write_fake_llama
from tests.instance_manager.test_llama import write_header
from tests.instance_manager.test_llama_memory import QWEN3

USER = {"Authorization": "Bearer user-key"}
ADMIN = {"Authorization": "Bearer admin-key"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    write_header(made / "models/chat/chat-Q4_K_M.gguf", QWEN3)
    write_header(made / "models/embeds/embeds-Q8_0.gguf", {**QWEN3, "qwen3.pooling_type": 3})
    write_header(made / "models/huge/huge-Q8_0.gguf", {**QWEN3, "qwen3.context_length": 1 << 30})
    folder = made / "models/tensors"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    models = {
        **{name: {"path": str(made / "models" / name)} for name in ("chat", "embeds", "huge", "tensors")},
        "named": {"path": str(made / "models/chat"), "engine": "llama", "max_model_len": 512},
        "unknown-flag": {"path": str(made / "models/chat"), "engine": "llama", "params": {"thread": 1}},
        "broken": {
            "path": str(made / "models/chat"),
            "engine": "llama",
            "params": {"fail_with": "error loading model: unknown model architecture: 'odd'"},
        },
    }
    (made / "models.yaml").write_text(json.dumps({"models": models}))
    return made


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = {
        "API_KEYS": "user-key",
        "ADMIN_API_KEYS": "admin-key",
        "MODELS_FILE": str(folder / "models.yaml"),
        "LLAMA_SERVER": write_fake_llama(folder / "llama-server"),
        "HF_HUB_CACHE": str(folder / "cache"),
    }
    with running_berth(tmp_path_factory.mktemp("berth"), **settings) as berth, berth.client() as client:
        client.headers.update(ADMIN)
        yield client


def model(client: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/models/{name}").json()
    return found


def complete(client: httpx.Client, name: str) -> httpx.Response:
    body = {"model": name, "prompt": "a", "max_tokens": 1}
    return client.post("/v1/completions", json=body, headers=USER)


def test_gguf_files_get_this_engine_and_the_record_says_why(client: httpx.Client) -> None:
    for name, engine, reason in (
        ("chat", "llama", "GGUF files, and llama-server was found: LLAMA_SERVER"),
        ("named", "llama", "named in models.yaml"),
        ("tensors", "engine", "safetensors, and VLLM_PYTHON isn't set"),
    ):
        found = model(client, name)
        assert (found["engine"], found["engine_reason"].startswith(reason)) == (engine, True), found


def test_a_request_by_name_starts_it_with_its_own_key_and_flags(client: httpx.Client, folder: Path) -> None:
    assert complete(client, "named").status_code == 200
    (instance_id,) = model(client, "named")["replicas"]
    record = client.get(f"/instances/{instance_id}").json()
    assert record["engine_reason"] == "named in models.yaml"
    assert record["params"]["max_model_len"] == 512
    weights = str(folder / "models/chat/chat-Q4_K_M.gguf")
    command = " ".join(record["command"])
    assert f"--metrics --model {weights} --alias named --host 127.0.0.1" in command
    assert "--ctx-size 512 --parallel 1" in command
    environment = client.get(f"/proxy/{instance_id}/env").json()
    assert environment["LLAMA_API_KEY"] and environment["LLAMA_API_KEY"] not in command


def test_an_instance_by_hand_gets_the_engine_of_its_files(client: httpx.Client, folder: Path) -> None:
    for name, asked, reason in (
        ("one", {}, "GGUF files, and llama-server was found: LLAMA_SERVER"),
        ("two", {"engine": "auto"}, "GGUF files, and llama-server was found: LLAMA_SERVER"),
        ("three", {"engine": "llama"}, "named in the request"),
    ):
        body = {"model_name": str(folder / "models/chat"), "name": name, **asked}
        record = client.post("/instances", params={"wait": 60}, json=body).json()
        assert (record["engine"], record["engine_reason"]) == ("llama", reason), record
        assert client.delete(f"/instances/{name}", params={"force": True}).status_code == 204


def test_a_wrong_flag_is_refused_before_anything_starts(client: httpx.Client, folder: Path) -> None:
    body = {"model_name": str(folder / "models/chat"), "params": {"gpu_layer": 3}}
    refused = client.post("/instances", json=body)
    assert refused.status_code == 422, refused.text
    error = refused.json()["error"]
    assert error["param"] == "params.gpu_layer"
    assert "llama-server has no such flag; did you mean gpu_layers?" in error["message"]
    assert "did you mean threads?" in model(client, "unknown-flag")["problem"]


def test_it_fails_with_its_own_words(client: httpx.Client) -> None:
    refused = complete(client, "broken")
    assert refused.json()["error"]["code"] == "unsupported_model", refused.text
    error = model(client, "broken")["error"]
    assert error["class"] == "unsupported_model"
    assert error["message"].endswith("can't be run: unknown model architecture: 'odd'"), error


def test_a_model_that_only_embeds_gets_no_request_for_text(client: httpx.Client) -> None:
    refused = complete(client, "embeds")
    assert refused.json()["error"]["code"] == "wrong_runner", refused.text


def test_what_can_never_fit_is_refused_with_what_would_help(client: httpx.Client) -> None:
    refused = complete(client, "huge")
    assert refused.status_code == 503
    assert "lower max_model_len" in refused.json()["error"]["message"], refused.text


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/completion", "POST", 200),
        ("/infill", "POST", 200),
        ("/apply-template", "POST", 200),
        ("/props", "GET", 200),
        ("/props", "POST", 403),
        ("/slots", "GET", 403),
        ("/slots/0", "POST", 403),
        ("/lora-adapters", "POST", 403),
        ("/lora-adapters", "GET", 403),
        ("/tools", "POST", 403),
        ("/v1/chat/completions/control", "POST", 403),
    ],
)
def test_what_concerns_all_clients_needs_an_admin_key(
    client: httpx.Client, path: str, method: str, status: int
) -> None:
    complete(client, "named")
    (instance_id,) = model(client, "named")["replicas"]
    answer = client.request(method, f"/proxy/{instance_id}{path}", headers=USER)
    assert (answer.status_code == 403) is (status == 403), answer.text


def test_it_can_not_be_put_to_sleep(client: httpx.Client) -> None:
    complete(client, "named")
    refused = client.post("/models/named/sleep", params={"level": 1})
    assert refused.status_code == 409
    assert "is a llama-server, which can't be put to sleep" in refused.json()["error"]["message"]
