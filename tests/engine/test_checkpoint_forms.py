"""Checkpoints as they come: the same model, saved in each of the usual forms, computes the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint.raw_config import read_raw_config
from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.types import SamplingParams
from engine.execution.build import build_core
from tests.engine.test_generation import greedy, request_of, run
from tests.engine.tiny_models import Reference, prompt_of, read_model_config

SHARDED, TIED = "qwen3-untied-sharded", "llama3-tied"


def copied(source: Path, directory: Path, **changes: Any) -> Path:
    """A checkpoint with some keys of its config.json changed; None removes a key."""
    shutil.copytree(source, directory)
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return directory


def core_of(directory: Path, **options: Any) -> EngineCore:
    options = {"dtype": "float32", "device": "cpu", "num_threads": 1, "max_model_len": 64, **options}
    return build_core(EngineConfig(model=directory, **options))


def generated(directory: Path, **options: Any) -> list[int]:
    (tokens,) = run(core_of(directory, **options), [greedy("r", prompt_of(12))]).values()
    return tokens


def test_shards_need_no_index(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = checkpoint(SHARDED)
    directory = copied(source, tmp_path / "model")
    (directory / "model.safetensors.index.json").unlink()
    assert generated(directory) == generated(source)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("saved_as", ["float32", "bfloat16", "float16"])
def test_weights_may_be_saved_in_any_float_type(
    key: str, saved_as: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    dtype = getattr(torch, saved_as)
    directory = copied(checkpoint(TIED), tmp_path / "model", **{"dtype": None, key: saved_as})
    path = directory / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    assert read_model_config(directory).dtype == saved_as
    prompt = prompt_of(12)
    assert generated(directory) == Reference(directory).generate(prompt, len(generated(directory)))
    assert len(generated(directory, dtype="auto")) == len(generated(directory))  # as a CPU computes that type


def test_a_type_is_not_needed(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = checkpoint(TIED)
    directory = copied(source, tmp_path / "model", dtype=None, torch_dtype=None)
    assert read_model_config(directory).dtype is None
    assert generated(directory, dtype="auto") == generated(source)


@pytest.mark.parametrize(("is_saved", "is_tied"), [(True, True), (True, None), (False, True)])
def test_tied_embeddings_with_or_without_a_copy(
    is_saved: bool, is_tied: bool | None, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Without the key, Llama's head isn't tied: then the checkpoint must have one."""
    source = checkpoint(TIED)
    directory = copied(source, tmp_path / "model", tie_word_embeddings=is_tied)
    if is_saved:
        path = directory / "model.safetensors"
        tensors = load_file(path)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, path, metadata={"format": "pt"})
    assert generated(directory) == generated(source)


def test_rope_scaling_beside_its_theta(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = checkpoint(TIED)
    scaling = json.loads((source / "config.json").read_text())["rope_parameters"]
    theta = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    directory = copied(
        source, tmp_path / "model", rope_parameters=None, rope_scaling=scaling, rope_theta=theta
    )
    assert generated(directory) == generated(source)


def test_the_text_part_of_a_multimodal_configuration_is_read(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its fields are in text_config; the head's tie, the type and the end tokens may be around it."""
    source = checkpoint(TIED)
    whole = json.loads((source / "config.json").read_text())
    around = {key: whole.pop(key) for key in ("architectures", "tie_word_embeddings", "eos_token_id")}
    whole.pop("dtype", None)
    directory = copied(source, tmp_path / "model")
    wrapper = {
        **around,
        "dtype": "bfloat16",
        "text_config": {**whole, "eos_token_id": None},
        "vision_config": {},
    }
    (directory / "config.json").write_text(json.dumps(wrapper))
    config = read_model_config(directory)
    assert (config.hidden_size, config.dtype, config.eos_token_ids) == (64, "bfloat16", (1,))
    assert config.tie_word_embeddings and config.architecture == "LlamaForCausalLM"
    assert generated(directory) == generated(source)
    overridden = {"text_config": {"vocab_size": 7}, "hidden_size": 9}
    raw = read_raw_config(directory, overridden)
    assert (raw["vocab_size"], raw["hidden_size"]) == (7, 9)


def test_end_tokens_of_the_generation_config_are_a_list(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each of them ends a sequence, in the scheduler as in the sampler."""
    source = checkpoint(TIED)
    free = generated(source)
    directory = copied(source, tmp_path / "model", eos_token_id=free[0])
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [319, free[3]]}))
    request = request_of("r", prompt_of(12), SamplingParams(max_tokens=len(free), temperature=0.0))
    (tokens,) = run(core_of(directory), [request]).values()
    assert tokens == free[: free.index(free[3]) + 1]


@pytest.mark.parametrize(
    ("scaling", "limit"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "dynamic", "factor": 2.0}, 1024),
        ({"rope_type": "linear", "factor": 2.0}, 512),
    ],
)
def test_a_scaling_extends_what_can_be_served(
    scaling: dict[str, Any], limit: int, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """As the makers say to use YaRN: with --hf-overrides, and max_position_embeddings as it was."""
    overrides = {"rope_parameters": {"rope_theta": 1e4, **scaling}}
    source = checkpoint(SHARDED)
    assert read_model_config(source, overrides).max_position_embeddings == limit
    core_of(source, max_model_len=limit, hf_overrides=overrides)
