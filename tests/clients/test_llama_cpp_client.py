"""A client of llama.cpp's router, unmodified, against Berth: it lists, loads, switches and unloads models."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.berth_process import BerthProcess, running_berth
from tests.clients.clients import CLIENTS
from tests.fake_engine import command

LLM = CLIENTS / "python" / "bin" / "llm"


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    """Without keys: this client has none."""
    folder = tmp_path_factory.mktemp("llama-client")
    models = {"one": {"command": command(), "aliases": ["first"]}, "two": {"command": command()}}
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    with running_berth(folder, MODELS_FILE=str(folder / "models.yaml")) as berth:
        yield berth


def llamacpp(berth: BerthProcess, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "LLM_LLAMACPP_SERVER": berth.url, "LLM_USER_PATH": str(folder)}
    ran = subprocess.run(
        [LLM, "llamacpp", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.skipif(not LLM.exists(), reason="`make test-clients` installs it")
def test_llms_plugin_for_llama_cpp_manages_models(berth: BerthProcess, tmp_path: Path) -> None:
    assert "loaded successfully" in llamacpp(berth, tmp_path, "load", "one")
    assert "Status: LOADED" in llamacpp(berth, tmp_path, "info", "one")
    assert "'two'" in llamacpp(berth, tmp_path, "switch", "two")
    assert "unloaded successfully" in llamacpp(berth, tmp_path, "unload", "one")
    assert "Status: UNLOADED" in llamacpp(berth, tmp_path, "info", "one")
    with berth.client() as client:
        values = {one["id"]: one["status"]["value"] for one in client.get("/models").json()["data"]}
    assert (values["one"], values["two"]) == ("unloaded", "loaded")
