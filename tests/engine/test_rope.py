"""Rotary positions equal transformers', for each scaling, below and beyond the original length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_like_llama
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as rotate_like_phi

from engine.errors import CheckpointError, UnsupportedModel
from engine.models.config import ConfigReader
from engine.models.layers.rope import LayerRopes, RotaryEmbedding, Rotation
from engine.models.operators import TorchOperators
from engine.models.rope_config import LongRopeScaling, RopeConfig, read_rope, read_ropes

HEAD_DIM = 32
ORIGINAL, LIMIT = 64, 256
TOLERANCE = 1e-6
CPU = torch.device("cpu")
SHORT_FACTORS = [1.0 + 0.1 * number for number in range(HEAD_DIM // 2)]
LONG_FACTORS = [1.5 + 0.4 * number for number in range(HEAD_DIM // 2)]
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": _YARN,
    "yarn-betas": _YARN | {"beta_fast": 8.0, "beta_slow": 2.0},
    "yarn-untruncated": _YARN | {"truncate": False},
    "yarn-factor": _YARN | {"attention_factor": 0.7},
    "yarn-mscale": _YARN | {"mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn-without-original": {"rope_type": "yarn", "factor": 2.0},
}


def config_of(scaling: Mapping[str, Any], **fields: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=LIMIT,
        rope_parameters={"rope_theta": 5e4, **scaling},
        **fields,
    )


def reader_of(**fields: Any) -> ConfigReader:
    return ConfigReader(Path("config.json"), {"max_position_embeddings": LIMIT, **fields})


def parsed(scaling: Mapping[str, Any], **fields: Any) -> RopeConfig:
    reader = reader_of(rope_parameters={"rope_theta": 5e4, **scaling}, **fields)
    return read_rope(reader, reader.object("rope_parameters"), HEAD_DIM)


def rotary(config: RopeConfig | None, *, longest: int = LIMIT) -> RotaryEmbedding:
    return RotaryEmbedding(HEAD_DIM, config, longest=longest, dtype=torch.float32, device=CPU)


def assert_equal(
    ours: RotaryEmbedding, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor
) -> None:
    assert_rotation(ours.rotation(positions), cos, sin)


def assert_rotation(rotation: Rotation, cos: torch.Tensor, sin: torch.Tensor) -> None:
    half = sin.shape[-1] // 2
    assert (rotation.cos[:, 0] - cos[0]).abs().max() < TOLERANCE
    assert (rotation.signed_sin[:, 0, half:] - sin[0, :, half:]).abs().max() < TOLERANCE
    assert (rotation.signed_sin[:, 0, :half] + sin[0, :, :half]).abs().max() < TOLERANCE


def rotated(ours: RotaryEmbedding, queries: torch.Tensor) -> torch.Tensor:
    """[heads, T, head_dim] → the same, by the operators that models use."""
    num_rows = queries.shape[1]
    rotation = ours.rotation(torch.arange(num_rows))
    keys_and_values = torch.zeros(num_rows, 2, HEAD_DIM)
    stored = torch.zeros(2, 1, num_rows, HEAD_DIM)
    heads = torch.cat((queries.transpose(0, 1), keys_and_values), dim=1)
    made = TorchOperators().rotate_and_store(
        heads, None, rotation.cos, rotation.signed_sin, torch.arange(num_rows), stored[0], stored[1], eps=0.0
    )
    return made.transpose(0, 1)


@pytest.mark.parametrize("name", sorted(SCALINGS))
@pytest.mark.parametrize("length", [ORIGINAL, LIMIT, 3 * LIMIT])
def test_rotations_equal_transformers(name: str, length: int) -> None:
    positions = torch.arange(length)
    reference = LlamaRotaryEmbedding(config_of(SCALINGS[name]))
    cos, sin = reference(torch.zeros(1, 1, 1), positions[None])
    assert_equal(rotary(parsed(SCALINGS[name])), cos, sin, positions)


@pytest.mark.parametrize("longest", [ORIGINAL, LIMIT, LIMIT + 1, 4 * LIMIT])
def test_dynamic_scaling_is_transformers_for_the_longest_sequence_served(longest: int) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    positions = torch.arange(longest)
    cos, sin = LlamaRotaryEmbedding(config_of(scaling))(torch.zeros(1, 1, 1), positions[None])
    ours = rotary(parsed(scaling), longest=longest)
    assert_equal(ours, cos, sin, positions)
    assert_equal(ours, cos[:, :5], sin[:, :5], positions[:5])  # of short sequences, too


@pytest.mark.parametrize("longest", [ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, LIMIT])
@pytest.mark.parametrize("extra", [{}, {"attention_factor": 1.3}, {"factor": 2.0}])
def test_longrope_is_transformers_for_the_longest_sequence_served(
    longest: int, extra: dict[str, float]
) -> None:
    scaling = {"rope_type": "longrope", "short_factor": SHORT_FACTORS, "long_factor": LONG_FACTORS, **extra}
    scaling["original_max_position_embeddings"] = ORIGINAL
    positions = torch.arange(longest)
    cos, sin = LlamaRotaryEmbedding(config_of(scaling))(torch.zeros(1, 1, 1), positions[None])
    assert_equal(rotary(parsed(scaling), longest=longest), cos, sin, positions)


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_phi_names_the_original_length_beside_the_scaling(kind: str) -> None:
    """And its first checkpoints have other names for LongRoPE. A quarter of each head isn't rotated."""
    dim = 3 * HEAD_DIM // 4
    fields: dict[str, Any] = {
        "original_max_position_embeddings": ORIGINAL,
        "partial_rotary_factor": 0.75,
        "rope_theta": 5e4,
        "rope_scaling": {
            "type": kind,
            "short_factor": SHORT_FACTORS[: dim // 2],
            "long_factor": LONG_FACTORS[: dim // 2],
        },
    }
    (config,) = read_ropes(reader_of(**fields), ["full_attention"], HEAD_DIM)
    ours = rotary(config)
    fields["rope_scaling"]["original_max_position_embeddings"] = ORIGINAL  # or transformers doesn't read "su"
    reference = Phi3RotaryEmbedding(
        Phi3Config(
            hidden_size=4 * HEAD_DIM,
            num_attention_heads=4,
            max_position_embeddings=LIMIT,
            pad_token_id=0,
            **fields,
        )
    )
    positions = torch.arange(LIMIT)
    cos, sin = reference(torch.zeros(1, 1, 1), positions[None])
    assert_equal(ours, cos, sin, positions)
    queries = torch.randn(1, 4, LIMIT, HEAD_DIM)
    expected, _ = rotate_like_phi(queries, queries, cos, sin)  # type: ignore[no-untyped-call]
    assert (rotated(ours, queries[0]) - expected[0]).abs().max() < 1e-5


def test_whole_heads_rotate_as_transformers_does() -> None:
    ours = rotary(parsed(SCALINGS["yarn"]))
    positions = torch.arange(LIMIT)
    cos, sin = LlamaRotaryEmbedding(config_of(SCALINGS["yarn"]))(torch.zeros(1, 1, 1), positions[None])
    queries = torch.randn(1, 4, LIMIT, HEAD_DIM)
    expected, _ = rotate_like_llama(queries, queries, cos, sin)
    assert (rotated(ours, queries[0]) - expected[0]).abs().max() < 1e-5


def test_without_positions_nothing_is_rotated() -> None:
    x = torch.randn(3, 700, HEAD_DIM)
    assert torch.equal(rotated(rotary(None), x), x)


@pytest.mark.parametrize("style", ["by-type", "flat"])
def test_gemma_has_another_theta_in_layers_with_a_window(style: str) -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    scaling = {"rope_type": "linear", "factor": 8.0}
    fields: dict[str, Any]
    if style == "flat":
        fields = {"rope_theta": 1e5, "rope_local_base_freq": 2e3, "rope_scaling": dict(scaling)}
    else:
        full = {"rope_theta": 1e5, **scaling}
        sliding = {"rope_type": "default", "rope_theta": 2e3}
        fields = {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}
    reader = reader_of(layer_types=types, **fields)
    configs = read_ropes(reader, types, HEAD_DIM, sliding_theta=reader.number("rope_local_base_freq", 1e4))
    ropes = LayerRopes(configs, HEAD_DIM, longest=LIMIT, dtype=torch.float32, device=CPU)
    reference = Gemma3RotaryEmbedding(
        Gemma3TextConfig(head_dim=HEAD_DIM, num_hidden_layers=3, layer_types=types, **fields)
    )
    positions = torch.arange(LIMIT)
    rotations = ropes.rotations(positions)
    for layer_type, rotation in zip(types, rotations, strict=True):
        cos, sin = reference(torch.zeros(1, 1, 1), positions[None], layer_type)
        assert_rotation(rotation, cos, sin)
    assert rotations[0] is rotations[2]  # computed once


@pytest.mark.parametrize("name", sorted(SCALINGS))
def test_the_flat_style_says_the_same(name: str) -> None:
    scaling = {key.replace("rope_type", "type"): value for key, value in SCALINGS[name].items()}
    (flat,) = read_ropes(reader_of(rope_theta=5e4, rope_scaling=scaling), ["full_attention"], HEAD_DIM)
    assert flat == parsed(SCALINGS[name])


def test_a_family_has_its_own_default_theta() -> None:
    (config,) = read_ropes(reader_of(), ["full_attention"], HEAD_DIM, theta=5e5)
    assert config == RopeConfig(theta=5e5)


@pytest.mark.parametrize(
    ("scaling", "reach"),
    [
        ("default", 0),
        ("linear", 0),
        ("llama3", 0),
        ("yarn", 4 * ORIGINAL),
        ("yarn-without-original", 2 * LIMIT),
    ],
)
def test_how_far_a_scaling_extends_the_model(scaling: str, reach: int) -> None:
    assert parsed(SCALINGS[scaling]).reach == reach


def test_dynamic_scaling_extends_the_model_by_its_factor() -> None:
    assert parsed({"rope_type": "dynamic", "factor": 4.0}).reach == 4 * LIMIT


def test_positions_of_several_axes_are_equal_for_text() -> None:
    scaling = {"rope_type": "default", "mrope_section": [4, 6, 6]}
    assert parsed(scaling) == parsed({"type": "mrope", "mrope_section": [4, 6, 6]}) == RopeConfig(theta=5e4)


@pytest.mark.parametrize(
    ("scaling", "error", "message"),
    [
        ({"rope_type": "spiral"}, UnsupportedModel, "'spiral' isn't supported; default, dynamic, linear"),
        ({"rope_type": "linear"}, CheckpointError, "factor is None"),
        ({"rope_type": "linear", "factor": -1}, CheckpointError, "factor is -1"),
        (
            {"rope_type": "longrope", "short_factor": [1], "long_factor": "all"},
            CheckpointError,
            "long_factor",
        ),
        (
            {"rope_type": "longrope", "short_factor": SHORT_FACTORS, "long_factor": [1.0]},
            CheckpointError,
            "long_factor has 1 numbers; the rotated dimensions need 16",
        ),
        ({"partial_rotary_factor": 1.5}, CheckpointError, "1.5"),
        ({"partial_rotary_factor": 0.1}, CheckpointError, "0.1"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": "no"}, CheckpointError, "truncate is 'no'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    scaling: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        parsed(scaling)


def test_the_lists_of_longrope_are_kept() -> None:
    scaling = {"rope_type": "longrope", "short_factor": SHORT_FACTORS, "long_factor": LONG_FACTORS}
    config = parsed(scaling, original_max_position_embeddings=ORIGINAL).scaling
    assert isinstance(config, LongRopeScaling)
    assert list(config.short_factors) == SHORT_FACTORS
