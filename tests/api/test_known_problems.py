"""Problems known before a start: one sentence everywhere, and no process for what would be refused anyway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import running_berth
from tests.broken_checkpoints import DEMO, changed, make_broken

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
ADMIN = {"authorization": "Bearer admin-key"}
USER = {"authorization": "Bearer user-key"}
KEYS = {"API_KEYS": "user-key", "ADMIN_API_KEYS": "admin-key"}
LORA = {"peft_type": "LORA", "r": 64, "lora_alpha": 8, "target_modules": ["q_proj"]}
ENTRIES: dict[str, dict[str, Any]] = {
    "too-long": {"params": {"max_model_len": 10**6}},
    "lora-elsewhere": {"params": {"enable_lora": True, "model_impl": "transformers"}},
    "bert-on-two": {"params": {"tensor_parallel_size": 2}},
    "bert-with-lora": {"params": {"enable_lora": "true"}},
    "bert-that-talks": {"params": {"runner": "generate"}},
    "no-adapter": {"params": {"lora_modules": ["a=/no/such/place"]}},
}


def bert(folder: Path) -> Path:
    directory = make_broken("no-architectures", folder)
    changed(architectures=["BertModel"])(directory)
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("berth")
    encoder = bert(folder)
    catalog = {
        name: {"path": str(encoder if name.startswith("bert") else DEMO), **entry}
        for name, entry in ENTRIES.items()
    }
    catalog["broken"] = {"path": str(make_broken("missing-shard", folder))}
    catalog["whole-bert"] = {"path": str(encoder)}
    catalog["gone"] = {"path": str(folder / "gone")}
    catalog["later"] = {"path": str(DEMO), "params": {"lora_modules": [f"a={folder / 'later'}"]}}
    (folder / "models.yaml").write_text(json.dumps({"models": catalog}))
    (folder / "found").mkdir()
    make_broken("diffuses-text", folder / "found")
    return folder


@pytest.fixture(scope="module")
def log(folder: Path) -> Path:
    return folder / "berth.log"


@pytest.fixture(scope="module")
def client(folder: Path, log: Path) -> Iterator[httpx.Client]:
    settings = {
        "MODEL_DIRS": str(folder / "found"),
        "MODELS_FILE": str(folder / "models.yaml"),
        "STATE_DIR": str(folder / "state"),
    }
    with running_berth(folder, **settings, **KEYS) as berth, berth.client() as client:
        client.headers.update(ADMIN)
        yield client


def problem(client: httpx.Client, name: str, headers: dict[str, str] = ADMIN) -> str:
    return str(client.get(f"/v1/models/{name}", headers=headers).json()["problem"])


def num_instances(client: httpx.Client) -> int:
    return len(client.get("/instances", params={"all": "true"}).json()["data"])


@pytest.mark.parametrize("name", ENTRIES)
def test_flags_that_do_not_fit_are_refused_at_once_with_the_listed_sentence(
    client: httpx.Client, name: str
) -> None:
    said = client.get(f"/models/{name}").json()["problem"]
    assert said and said == problem(client, name)
    before = num_instances(client)
    asked = [
        client.post("/v1/chat/completions", json={"model": name, **CHAT}),
        client.post("/v1/chat/completions", json={"model": name, **CHAT}),  # no back-off is counted down
        client.post(f"/models/{name}/start"),
        client.post(f"/models/{name}/restart"),
    ]
    for answer in asked:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "invalid_spec"), answer.text
        assert error["message"] == f"model {name!r} can't be run: {said}"
        assert "retry-after" not in answer.headers
    assert num_instances(client) == before, "no process for it"
    assert client.get(f"/models/{name}").json()["state"] == "stopped"


def test_an_instance_with_such_flags_is_not_created(client: httpx.Client) -> None:
    answer = client.post("/instances", json={"model_name": str(DEMO), "params": {"max_model_len": 10**6}})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_spec", "params")
    assert "--max-model-len 1000000 exceeds the model's limit" in error["message"]


def test_an_encoder_without_a_mistake_is_no_chat_model(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json={"model": "whole-bert", **CHAT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "wrong_runner")


def test_a_repaired_adapter_is_noticed_at_the_next_request(client: httpx.Client, folder: Path) -> None:
    assert "There is no directory" in problem(client, "later")
    (folder / "later").mkdir()
    (folder / "later" / "adapter_config.json").write_text(json.dumps(LORA))
    assert "its rank is 64" in problem(client, "later")
    (folder / "later" / "adapter_config.json").write_text(json.dumps({**LORA, "r": 4}))
    assert "has no adapter_model.safetensors" in problem(client, "later")
    (folder / "later" / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert client.get("/v1/models/later").json()["problem"] is None


def test_a_reload_and_the_log_name_entries_that_cannot_be_run(client: httpx.Client, log: Path) -> None:
    warnings = client.post("/reload").json()["warnings"]
    for name in ("too-long", "broken", "gone"):
        (line,) = [line for line in warnings if line.startswith(f"model {name} can't be started: ")]
        assert line in log.read_text()
        assert problem(client, name) in line
    assert "diffuses-text" not in str(warnings), "it may be there for another program"
    assert "'LLaDAModelLM'" in problem(client, "diffuses-text")


def test_no_folder_is_shown_to_a_request_key(client: httpx.Client, folder: Path) -> None:
    for name in ("no-adapter", "gone", "later", "broken"):
        answer = client.post("/v1/chat/completions", json={"model": name, **CHAT}, headers=USER)
        shown = answer.text + problem(client, name, USER)
        assert "/no/such" not in shown and str(folder) not in shown, shown
    assert "directory '…/place'" in problem(client, "no-adapter", USER)
    assert "/no/such/place" in problem(client, "no-adapter")
