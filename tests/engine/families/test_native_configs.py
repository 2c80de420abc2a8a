"""Configurations of the families that the engine has classes for, as newer and older savers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CheckpointError, UnsupportedModel
from engine.models.decoder_config import DecoderConfig
from engine.models.family_configs import Gemma3Config, Qwen3MoeConfig
from engine.models.rope_config import LongRopeScaling
from tests.engine.families.native_recipes import NATIVE
from tests.engine.families.recipes import made
from tests.engine.tiny_models import read_model_config


def written(directory: Path, values: dict[str, Any]) -> DecoderConfig:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values))
    return read_model_config(directory)


def as_older_savers_write(values: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, `torch_dtype`; Gemma's and OLMo's layers as they named them."""
    older = {**values, "torch_dtype": values["dtype"]}
    del older["dtype"]
    parameters = older.pop("rope_parameters")
    if "full_attention" in parameters:
        older["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        parameters = parameters["full_attention"]
    older["rope_theta"] = parameters.pop("rope_theta")
    if "partial_rotary_factor" in parameters:
        older["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
    parameters["type"] = parameters.pop("rope_type")
    older["rope_scaling"] = None if parameters["type"] == "default" else parameters
    return older


@pytest.mark.parametrize("name", NATIVE)
def test_older_and_newer_styles_say_the_same(name: str, tmp_path: Path) -> None:
    model = made(name, NATIVE[name])
    model.config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"architectures": [type(model).__name__], "dtype": "float32"}
    newer, older = (
        written(tmp_path / "newer", values),
        written(tmp_path / "older", as_older_savers_write(values)),
    )
    assert older == newer
    assert newer.dtype == "float32"


COMMON: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}


def test_mistral_has_a_window_unless_the_file_says_null(tmp_path: Path) -> None:
    values = {"architectures": ["MistralForCausalLM"], **COMMON, "num_key_value_heads": 2}
    assert {spec.window for spec in written(tmp_path, values).attention_specs} == {4096}
    config = written(tmp_path, {**values, "sliding_window": None})
    assert {spec.window for spec in config.attention_specs} == {None}


def test_gemma_as_it_was_published(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "architectures": ["Gemma3ForCausalLM"],
        **COMMON,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
    }
    config = written(tmp_path, values)
    assert isinstance(config, Gemma3Config)
    assert config.final_logit_softcap is None and config.tie_word_embeddings
    assert [spec.window for spec in config.attention_specs] == [512] * 5 + [None]
    assert {spec.scale for spec in config.attention_specs} == {0.25}
    thetas = [rope.theta for rope in config.ropes if rope is not None]
    assert thetas == [1e4] * 5 + [1e6]
    assert [rope is not None and rope.scaling is not None for rope in config.ropes] == [False] * 5 + [True]
    with pytest.raises(UnsupportedModel, match="use_bidirectional_attention"):
        written(tmp_path, {**values, "use_bidirectional_attention": True})
    with pytest.raises(UnsupportedModel, match="'silu' isn't supported; 'gelu_pytorch_tanh' is"):
        written(tmp_path, {**values, "hidden_activation": "silu"})


def test_a_long_phi_as_it_was_published(tmp_path: Path) -> None:
    factors = [1.0] * 8
    values: dict[str, Any] = {
        "architectures": ["Phi3ForCausalLM"],
        **COMMON,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "su", "short_factor": factors, "long_factor": factors},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "attention_bias": False,
    }
    config = written(tmp_path, values)
    scaling = config.ropes[0].scaling if config.ropes[0] is not None else None
    assert isinstance(scaling, LongRopeScaling)
    assert scaling.original_max_position_embeddings == 4096
    assert config.max_position_embeddings == config.longest_sequence == 131072


def test_smollm_lists_its_layers_without_positions(tmp_path: Path) -> None:
    values = {"architectures": ["SmolLM3ForCausalLM"], **COMMON, "max_position_embeddings": 4096}
    config = written(tmp_path, values)
    assert [rope is not None for rope in config.ropes] == [True, True, True, False, True, True]
    assert config.ropes[0] is not None and config.ropes[0].theta == 2e6
    config = written(tmp_path, {**values, "no_rope_layers": [0, 1, 1, 1, 1, 0]})
    assert [rope is not None for rope in config.ropes] == [False, True, True, True, True, False]
    with pytest.raises(CheckpointError, match=r"no_rope_layers is .*; it must be a list of 6"):
        written(tmp_path, {**values, "no_rope_layers": [0, 1]})


def test_experts_may_be_in_some_layers_only(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM"],
        **COMMON,
        "max_position_embeddings": 4096,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
    }
    config = written(tmp_path, values)
    assert isinstance(config, Qwen3MoeConfig)
    assert config.sparse_layers == {1, 5}
    assert (config.num_experts, config.num_chosen_experts, config.normalises_weights) == (16, 4, True)
    with pytest.raises(CheckpointError, match="mlp_only_layers is 'all'"):
        written(tmp_path, {**values, "mlp_only_layers": "all"})
