"""A new family of models takes a module with its class and one line of the registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.config import EngineConfig
from engine.errors import ConfigError, UnsupportedModel
from engine.execution.build import build_core
from engine.launch.preflight import check_config
from engine.models.decoder import Decoder
from engine.models.decoder_config import DecoderConfig
from engine.models.qwen3 import Qwen3ForCausalLM
from engine.models.registry import ARCHITECTURES, decoders
from engine.pooling.build import build_pooling_core
from engine.pooling.plan import RunnerKind, Task, choose_runner, read_pooling_plan
from engine.pooling.types import PoolingRequest
from engine.text.tokenizer import Tokenizer
from tests.engine.pooling.tiny_poolers import make_pooler
from tests.engine.test_generation import greedy, run
from tests.engine.tiny_models import prompt_of

EPSILON = 1.0
CLASS = f"{__name__}:ScratchForCausalLM"


class ScratchForCausalLM(Qwen3ForCausalLM):
    """Has layers of its own: those of Qwen3 with another norm."""

    @classmethod
    def make_decoder(cls, config: DecoderConfig) -> Decoder:
        return super().make_decoder(replace(config, rms_norm_eps=EPSILON))


@pytest.fixture
def renamed(tmp_path: Path) -> Callable[[Path, str], Path]:
    """A copy of a checkpoint under another architecture's name."""

    def copy(source: Path, name: str) -> Path:
        directory = tmp_path / name
        shutil.copytree(source, directory)
        raw = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**raw, "architectures": [name]}))
        return directory

    return copy


def add_family(monkeypatch: pytest.MonkeyPatch, *, pools: bool = True) -> None:
    for architecture in decoders("Scratch", CLASS, pools=pools):
        monkeypatch.setitem(ARCHITECTURES, architecture.name, architecture)


def settings(directory: Path, **options: Any) -> EngineConfig:
    return EngineConfig(
        model=directory, dtype="float32", device="cpu", num_threads=1, max_model_len=64, **options
    )


def test_a_family_of_the_registry_generates_with_its_own_layers(
    checkpoint: Callable[[str], Path],
    renamed: Callable[[Path, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_family(monkeypatch)
    source = checkpoint("qwen3-tied")
    config, original = settings(renamed(source, "ScratchForCausalLM")), settings(source)
    check_config(config)
    assert choose_runner(config) is RunnerKind.GENERATE

    ours, qwen, with_that_norm = (
        run(build_core(one), [greedy("r", prompt_of(12))])
        for one in (config, original, replace(original, hf_overrides={"rms_norm_eps": EPSILON}))
    )

    assert ours == with_that_norm
    assert ours != qwen


def test_its_embedding_models_have_the_same_layers(
    renamed: Callable[[Path, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_family(monkeypatch)
    source = make_pooler("qwen3-bare", tmp_path)
    config, original = settings(renamed(source, "ScratchModel")), settings(source)
    check_config(config)
    plan = read_pooling_plan(config)
    assert (choose_runner(config), plan.task) == (RunnerKind.POOLING, Task.EMBED)

    ours, qwen, with_that_norm = (
        _pooled(one) for one in (config, original, replace(original, hf_overrides={"rms_norm_eps": EPSILON}))
    )

    assert torch.equal(ours, with_that_norm)
    assert not torch.equal(ours, qwen)


def test_a_family_that_only_generates_is_refused_by_the_pooling_runner(
    checkpoint: Callable[[str], Path],
    renamed: Callable[[Path, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_family(monkeypatch, pools=False)
    directory = renamed(checkpoint("qwen3-tied"), "ScratchForCausalLM")

    check_config(settings(directory))
    with pytest.raises(ConfigError, match="no class of its own for ScratchForCausalLM"):
        check_config(settings(directory, runner="pooling", model_impl="native"))


def test_a_name_that_begins_like_a_familys_is_not_of_the_family(
    checkpoint: Callable[[str], Path], renamed: Callable[[Path, str], Path]
) -> None:
    directory = renamed(checkpoint("qwen3-tied"), "Qwen3NextForCausalLM")
    assert architecture_of(directory, read_raw_config(directory)) == "Qwen3NextForCausalLM"
    for runner in ("generate", "pooling"):
        with pytest.raises(ConfigError, match="no class of its own for Qwen3NextForCausalLM"):
            check_config(settings(directory, runner=runner, model_impl="native"))
        with pytest.raises(UnsupportedModel, match="but its model_type 'qwen3' is that of Qwen3ForCausalLM"):
            check_config(settings(directory, runner=runner))


@pytest.mark.parametrize("name", [name for name, one in ARCHITECTURES.items() if not one.generates])
def test_an_architecture_without_a_language_head_needs_the_pooling_runner(
    name: str, checkpoint: Callable[[str], Path], renamed: Callable[[Path, str], Path]
) -> None:
    config = settings(renamed(checkpoint("qwen3-tied"), name))
    assert choose_runner(config) is RunnerKind.POOLING
    with pytest.raises(ConfigError, match=f"{name} generates no text"):
        choose_runner(replace(config, runner="generate"))


def _pooled(config: EngineConfig) -> torch.Tensor:
    core = build_pooling_core(config, read_pooling_plan(config), _no_tokenizer)
    request = PoolingRequest(request_id="r", token_ids=prompt_of(12), arrival_time=0.0)
    (value,) = core.runner.run([request])
    return torch.tensor(value.tolist())


def _no_tokenizer() -> Tokenizer:
    raise AssertionError("an embedding model needs no tokenizer")
