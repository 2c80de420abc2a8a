"""Which engine kind is chosen for a model whose engine nobody named, and the reason that is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from instance_manager.backends import EngineChoice, choose_engine
from tests.fake_engine import write_fake_llama

NO_PROGRAM = {"PATH": "/none"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in (
        "gguf/m.gguf",
        "tensors/model.safetensors",
        "both/m.gguf",
        "both/model.safetensors",
        "odd/x",
    ):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "models"


def choice(
    model: str, models: Path, options: Mapping[str, Any] | None = None, has_gpu: bool = False
) -> EngineChoice:
    return choose_engine(
        model,
        model_dirs=(models,),
        environ={"HF_HUB_CACHE": str(models / "cache")},
        options=options or {},
        has_gpu=lambda: has_gpu,
    )


@pytest.mark.parametrize("model", ["gguf", "gguf:Q4_K_M", "{}/gguf/m.gguf", "owner/x-GGUF", "owner/x:Q4_K_M"])
def test_gguf_files_are_for_llama_where_its_server_is(model: str, models: Path, tmp_path: Path) -> None:
    program = write_fake_llama(tmp_path / "llama-server")
    chosen = choice(
        model.format(models), models, {"llama_server": program, "vllm_python": "/p"}, has_gpu=True
    )
    assert chosen == EngineChoice("llama", "GGUF files, and llama-server was found: LLAMA_SERVER")


def test_gguf_files_without_a_server_are_for_the_embedded_engine(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/none")
    chosen = choice("gguf", models, {"vllm_python": "/p"}, has_gpu=True)
    assert chosen.engine == "engine"
    assert chosen.reason.startswith("GGUF files, and no llama-server was found (LLAMA_SERVER)")


@pytest.mark.parametrize(
    ("options", "has_gpu", "engine", "says"),
    [
        ({}, False, "engine", "VLLM_PYTHON isn't set"),
        ({}, True, "engine", "VLLM_PYTHON isn't set"),
        ({"vllm_python": "/p"}, False, "engine", "there is no GPU"),
        ({"vllm_python": "/p"}, True, "vllm", "safetensors, a GPU, and VLLM_PYTHON is set"),
    ],
)
@pytest.mark.parametrize("model", ["tensors", "both"])
def test_safetensors_are_for_vllm_where_it_and_a_gpu_are(
    model: str, models: Path, options: dict[str, Any], has_gpu: bool, engine: str, says: str
) -> None:
    chosen = choice(model, models, options, has_gpu)
    assert chosen.engine == engine
    assert says in chosen.reason


@pytest.mark.parametrize("model", ["odd", "owner/name", "/none/at/all", "../../x"])
def test_what_nothing_is_known_of_is_for_the_embedded_engine(model: str, models: Path) -> None:
    chosen = choice(model, models, {"vllm_python": "/p"}, has_gpu=True)
    assert chosen.engine == "engine"
    assert chosen.reason


def test_a_gpu_is_looked_for_only_where_it_decides(models: Path) -> None:
    def fails() -> bool:
        raise AssertionError

    for model, options in (("gguf", {"vllm_python": "/p"}), ("tensors", {}), ("odd", {"vllm_python": "/p"})):
        choose_engine(model, model_dirs=(models,), environ={}, options=options, has_gpu=fails)
