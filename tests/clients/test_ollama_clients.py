"""Ollama's clients, unmodified, against a Berth with keys: its own in two languages, LangChain, LiteLLM."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.berth_process import ROOT, BerthProcess, free_port, running_berth
from tests.fake_hub import running_hub

SCRIPTS = Path(__file__).with_name("scripts")
CLIENTS = ROOT / ".clients"
KEY = "a-key-for-requests"
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


def run(berth: BerthProcess, script: str, provider: str = "") -> Any:
    """What the script printed."""
    program, path = CLIENTS / "python" / "bin" / "python", SCRIPTS / script
    if script.endswith(".mjs"):  # modules are looked up from the script's own folder
        program, path = Path("node"), CLIENTS / "node" / script
        path.write_text((SCRIPTS / script).read_text())
    own = {"BASE_URL": berth.url, "API_KEY": KEY, "MODEL": "story", "PROVIDER": provider, "NO_PROXY": "*"}
    finished = subprocess.run(
        [program, path],
        env={**os.environ, **own, **NAMES, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        cwd=CLIENTS,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(finished.stdout.splitlines()[-1])


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


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_ollamas_python_client(berth: BerthProcess, kind: str) -> None:
    got = run(berth, "ollama_client.py", kind)
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


def test_ollamas_javascript_client(berth: BerthProcess) -> None:
    got = run(berth, "ollama_client.mjs")
    check_session(got)
    assert got["asked"] == got["asked_whole"] == ["Oslo"]
    assert min(got["tokens"]) > 0
    check_models(got)
    assert got["sizes"] == [2, SIZE]
    assert got["missing"] == [404, "model 'nobody' not found"]


def test_langchain(berth: BerthProcess) -> None:
    got = run(berth, "with_langchain_ollama.py")
    check_session(got)
    assert got["asked"] == ["Oslo"]
    assert got["text"] and got["tokens"] > 0 and got["thought"]
    assert got["sizes"] == [2, SIZE]
    assert got["error"] == "model 'nobody' not found"


@pytest.mark.parametrize("provider", ["ollama_chat", "ollama"])
def test_litellm(berth: BerthProcess, provider: str) -> None:
    got = run(berth, "with_litellm_ollama.py", provider)
    assert got["streamed"] and got["whole"] and got["tokens"] > 0
    assert got["city"] in ("Oslo", "Bergen")
    assert got["sizes"] == [2, SIZE]
    assert "not found" in got["error"]
    if provider == "ollama_chat":  # the other knows no tools
        assert got["asked"] == ["Oslo"] and got["next"]
