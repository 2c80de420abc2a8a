"""Ollama's clients, unmodified, against a Berth with keys: its own in two languages, LangChain, LiteLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.berth_process import ROOT, BerthProcess, free_port, running_berth
from tests.clients.clients import KEY, run
from tests.clients.matrix import OLLAMA_CLIENTS, Client
from tests.fake_hub import running_hub

DEMO = str(ROOT / "models" / "berth-demo")
ADMIN_KEY = "an-admins-key"
NAMES = {"EMBEDDER": "vectors", "HUB_MODEL": "hf.co/berth/demo", "ADMIN_KEY": ADMIN_KEY}
SIZE = 192  # of the demo model's vectors


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("ollama_clients")
    models = {"story": {"path": DEMO}, "vectors": {"path": DEMO, "params": {"runner": "pooling"}}}
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    with running_hub() as hub:
        settings = {
            "API_KEYS": KEY,
            "ADMIN_API_KEYS": ADMIN_KEY,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            "MODELS_FILE": str(folder / "models.yaml"),
            "MODEL_DIRS": str(folder),
            "OLLAMA_PORT": str(free_port()),
        }
        with running_berth(folder, **settings) as berth:
            berth.url = f"http://127.0.0.1:{settings['OLLAMA_PORT']}"
            yield berth


def check_session(got: Any) -> None:
    """A tool's round trip, a stream, an object by a schema."""
    assert got["next"]
    assert got["streamed"]
    assert got["city"] in ("Oslo", "Bergen")


def check_models(got: Any) -> None:
    """Lists, loading and unloading, a pull with its progress."""
    assert {"story:latest", "vectors:latest"} <= set(got["listed"])
    assert {"completion", "tools"} <= set(got["capabilities"])
    assert "story:latest" in got["loaded"]
    assert got["unloaded"] == "unload"
    assert got["pulled"] == ["pulling manifest", "success"]


def check_python_client(got: Any, _: str) -> None:
    check_session(got)
    assert got["asked"] == got["asked_whole"] == ["Oslo"]
    assert got["reason"] in ("stop", "length")
    assert got["thought"]
    assert min(got["tokens"]) > 0 and min(got["times"]) > 0
    assert got["logprobs"] == [2, 2, 2]
    check_models(got["models"])
    assert got["models"]["context"] == 2048
    assert got["models"]["twins"] == ["twin:latest"]
    assert (got["models"]["deleted"], got["models"]["gone"]) == ("success", "success")
    assert got["models"]["digests"] > 3
    assert got["embeddings"]["sizes"] == [2, SIZE, 8, SIZE]
    assert got["embeddings"]["length"] == pytest.approx(1)
    assert got["missing"] == [404, "model 'nobody' not found"]
    assert got["missing_stream"] == [404, "model 'nobody' not found"]
    assert "not supported" in got["create"][1]


def check_javascript_client(got: Any, _: str) -> None:
    check_session(got)
    assert got["asked"] == got["asked_whole"] == ["Oslo"]
    assert min(got["tokens"]) > 0
    check_models(got)
    assert got["sizes"] == [2, SIZE]
    assert got["missing"] == [404, "model 'nobody' not found"]


def check_langchain(got: Any, _: str) -> None:
    check_session(got)
    assert got["asked"] == ["Oslo"]
    assert got["text"] and got["tokens"] > 0 and got["thought"]
    assert got["sizes"] == [2, SIZE]
    assert got["error"] == "model 'nobody' not found"


def check_litellm(got: Any, provider: str) -> None:
    assert got["streamed"] and got["whole"] and got["tokens"] > 0
    assert got["city"] in ("Oslo", "Bergen")
    assert got["sizes"] == [2, SIZE]
    assert "not found" in got["error"]
    if provider == "ollama_chat":  # the other knows no tools
        assert got["asked"] == ["Oslo"] and got["next"]


CHECKS = {
    "ollama_client.py": check_python_client,
    "ollama_client.mjs": check_javascript_client,
    "with_langchain_ollama.py": check_langchain,
    "with_litellm_ollama.py": check_litellm,
}


@pytest.mark.parametrize("client", OLLAMA_CLIENTS, ids=lambda client: client.name)
def test_a_client(berth: BerthProcess, client: Client) -> None:
    got = run(berth, client.environment, client.script, client.provider, more=NAMES)
    CHECKS[client.script](got, client.provider)
