"""An unsupported checkpoint is detected from its files at once, and the error names what can run it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.model_path import resolve_model
from engine.config import EngineConfig
from engine.errors import CheckpointError, ConfigError, UnsupportedModel
from engine.launch.preflight import check_checkpoint, check_config
from engine.models.architecture import DecoderArchitecture
from engine.models.decoder import CausalLM
from engine.models.encoder_layers import EncoderModel
from engine.models.registry import ARCHITECTURES
from tests.broken_checkpoints import BROKEN, DEMO, changed, make_broken


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_list_that_needs_no_torch_names_existing_classes(name: str) -> None:
    architecture = ARCHITECTURES[name]
    base = CausalLM if isinstance(architecture, DecoderArchitecture) else EncoderModel
    assert issubclass(architecture.load_class(), base)


def test_a_supported_checkpoint_passes() -> None:
    check_checkpoint(EngineConfig(model=DEMO))


@pytest.mark.parametrize("kind", BROKEN)
def test_an_unsupported_checkpoint_is_refused_with_what_can_run_it(kind: str, tmp_path: Path) -> None:
    directory = make_broken(kind, tmp_path)
    with pytest.raises(CheckpointError if BROKEN[kind].is_damaged else UnsupportedModel) as caught:
        check_checkpoint(EngineConfig(model=directory))
    message = caught.value.message
    assert BROKEN[kind].says in message
    assert BROKEN[kind].helps in message
    assert len(message.splitlines()) == 1


def test_flags_may_mend_what_the_checkpoint_lacks(tmp_path: Path) -> None:
    directory = make_broken("no-tokenizer", tmp_path)
    changed(architectures=None)(directory)
    overrides = {"architectures": ["Qwen3ForCausalLM"]}
    config = EngineConfig(model=directory, hf_overrides=overrides)
    check_checkpoint(config, tokenizer=DEMO)


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert resolve_model(tmp_path / "model.gguf") == tmp_path / "model.gguf"


@pytest.mark.parametrize("kind", ["diffuses-text", "gguf", "missing-shard"])
def test_the_process_ends_at_once_and_without_torch(kind: str, tmp_path: Path) -> None:
    directory = make_broken(kind, tmp_path)
    words = [sys.executable, "-X", "importtime", "-m", "engine", "--port", "0", str(directory)]
    started = time.perf_counter()
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 65
    assert "torch" not in ended.stderr.replace(str(directory), "")
    *_, last = (line for line in ended.stderr.splitlines() if not line.startswith("import time:"))
    assert "unsupported model: " in last
    assert BROKEN[kind].says in last
    assert time.perf_counter() - started < 5  # it takes 0.3 s; torch alone would take more than a second


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size 2 is for models that generate text"),
        ({"enable_lora": True}, "--enable-lora is for models that generate text"),
    ],
)
def test_flags_of_generating_models_are_refused_for_pooling(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_config(EngineConfig(model=DEMO, runner="pooling", **flags))


def test_sizes_that_devices_can_not_share_are_refused_with_those_that_they_can(tmp_path: Path) -> None:
    """Heads, and the features of an MLP."""
    with pytest.raises(ConfigError, match=r"6 attention heads, 2 key-value .* Possible: 1, 2\."):
        check_config(EngineConfig(model=DEMO, tensor_parallel_size=4))
    directory = make_broken("no-architectures", tmp_path)
    changed(architectures=["Qwen3ForCausalLM"], intermediate_size=513)(directory)
    with pytest.raises(
        ConfigError, match=r"size 2 doesn't divide this model: .* MLPs of 513 .* Possible: 1\."
    ):
        check_config(EngineConfig(model=directory, tensor_parallel_size=2))


def test_the_index_overrides_file_names(tmp_path: Path) -> None:
    directory = make_broken("missing-shard", tmp_path)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    check_checkpoint(EngineConfig(model=directory))


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    config = EngineConfig(model=DEMO)
    with pytest.raises(CheckpointError, match="gone can't be read: No such file"):
        check_checkpoint(config, tokenizer=tmp_path / "gone")
    directory = make_broken("cut-short", tmp_path)
    (directory / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json can't be read"):
        check_checkpoint(EngineConfig(model=directory))
