"""GGUF files as checkpoints: Hugging Face's names, shapes and configuration, and the model's own values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from engine.checkpoint.gguf_config import ARCHITECTURES, config_of
from engine.checkpoint.gguf_decoders import DECODERS
from engine.checkpoint.gguf_file import TYPES, read_gguf
from engine.errors import CheckpointError, UnsupportedModel
from engine.models.quantised import gguf_source
from engine.models.quantised.gguf_source import GGUFSource
from tests.engine.quantised.gguf_writer import Tensor, f32, write
from tests.engine.quantised.stored import parts_of
from tests.engine.quantised.test_ggml import REFERENCES, SIZES, random_blocks

NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}


def metadata(architecture: Any = "qwen3", **changes: Any) -> dict[str, Any]:
    values = {
        "context_length": 128,
        "embedding_length": 8,
        "block_count": 2,
        "feed_forward_length": 12,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
        **changes,
    }
    named = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": architecture, **named}


def counted(*shape: int) -> Tensor:
    return f32(shape, [float(value) for value in range(math.prod(shape))])


EMBEDDING = {"token_embd.weight": counted(10, 8)}


def source_of(tmp_path: Path, meta: dict[str, Any], tensors: dict[str, Tensor]) -> GGUFSource:
    return GGUFSource.open(write(tmp_path / "m.gguf", meta, tensors))


def test_names_are_hugging_faces(tmp_path: Path) -> None:
    leaves = (
        *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm"),
        *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
    )
    tensors = {
        **EMBEDDING,
        "output_norm.weight": counted(8),
        "output.weight": counted(10, 8),
        **{f"blk.1.{leaf}.weight": counted(8) for leaf in leaves},
        "blk.1.attn_q.bias": counted(8),
        "rope_freqs.weight": f32((2,), [1.0, 1.0]),
    }
    source = source_of(tmp_path, metadata(), tensors)
    layers = (
        *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    )
    assert source.names == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.1.self_attn.q_proj.bias",
        *(f"model.layers.1.{layer}.weight" for layer in layers),
    }


@pytest.mark.parametrize(
    ("name", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)]
)
def test_plain_types_are_read_as_stored(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    expected = torch.randn(6, 5).to(dtype)
    raw = bytes(expected.view(torch.uint8).flatten().tolist())
    source = source_of(
        tmp_path, metadata(), {**EMBEDDING, "output.weight": Tensor((6, 5), NUMBERS[name], raw)}
    )
    assert source.shape("lm_head.weight") == (6, 5)
    for rows in parts_of(6, 2):
        for columns in parts_of(5, 2):
            part = source.tensor("lm_head.weight", rows=rows, columns=columns)
            assert part.dtype == dtype
            assert torch.equal(part, expected[rows, columns])


@pytest.mark.parametrize("name", REFERENCES)
def test_quantised_types_are_read_in_parts_across_blocks(name: str, tmp_path: Path) -> None:
    num_values, size = SIZES[name]
    raw = random_blocks(name, 6)
    shape = (3, 2 * num_values)
    source = source_of(
        tmp_path, metadata(), {**EMBEDDING, "output.weight": Tensor(shape, NUMBERS[name], raw)}
    )
    expected = torch.tensor(
        [
            [
                REFERENCES[name](raw[block * size : (block + 1) * size], at)
                for block in (2 * row, 2 * row + 1)
                for at in range(num_values)
            ]
            for row in range(3)
        ]
    )
    for rows in parts_of(3, 1):
        for columns in parts_of(shape[1], num_values):
            part = source.tensor("lm_head.weight", rows=rows, columns=columns)
            assert part.dtype == torch.float32
            assert torch.allclose(part, expected[rows, columns], rtol=1e-3)


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def permuted(rows: list[Any], num_heads: int) -> list[Any]:
    """As llama.cpp's converter writes rows of queries and keys: a head's halves interleaved."""
    head = len(rows) // num_heads
    return [
        rows[number * head + side * (head // 2) + pair]
        for number in range(num_heads)
        for pair in range(head // 2)
        for side in range(2)
    ]


@pytest.mark.parametrize(("tensor", "layer", "num_heads"), [("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)])
def test_llamas_queries_and_keys_get_their_order_back(
    tensor: str, layer: str, num_heads: int, tmp_path: Path
) -> None:
    rows = [[float(row * 8 + column) for column in range(8)] for row in range(num_heads * 4)]
    bias = [float(row) for row in range(num_heads * 4)]
    stored = {
        **EMBEDDING,
        f"blk.0.{tensor}.weight": f32((len(rows), 8), flat(permuted(rows, num_heads))),
        f"blk.0.{tensor}.bias": f32((len(rows),), permuted(bias, num_heads)),
        "blk.0.attn_v.weight": f32((len(rows), 8), flat(rows)),
    }
    source = source_of(tmp_path, metadata("llama"), stored)
    for part in parts_of(len(rows), 4):
        expected = torch.tensor(rows)[part]
        assert torch.equal(source.tensor(f"model.layers.0.self_attn.{layer}.weight", rows=part), expected)
        assert torch.equal(
            source.tensor(f"model.layers.0.self_attn.{layer}.bias", rows=part), torch.tensor(bias)[part]
        )
    assert torch.equal(source.tensor("model.layers.0.self_attn.v_proj.weight"), torch.tensor(rows))


def test_biases_that_a_layer_lacks_are_missed(tmp_path: Path) -> None:
    """They aren't left out everywhere because the first layer has none."""
    for layer in (0, 1):
        biases = {f"blk.{layer}.attn_q.bias": counted(8), f"blk.{layer}.ffn_down.bias": counted(8)}
        found = config(tmp_path, metadata("llama"), {**EMBEDDING, **biases})
        assert found["attention_bias"] and found["mlp_bias"]


def test_matrices_of_more_dimensions_are_refused(tmp_path: Path) -> None:
    stored = {**EMBEDDING, "blk.0.attn_v.weight": counted(2, 8, 8)}
    with pytest.raises(CheckpointError, match=r"v_proj\.weight has 3 dimensions instead of 2"):
        source_of(tmp_path, metadata("llama"), stored)


def test_a_file_that_becomes_shorter_while_it_is_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_source, "_mapped", lambda file: torch.zeros(8, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="became shorter while it was read: start again"):
        source_of(tmp_path, metadata("llama"), EMBEDDING)


def test_rows_that_cannot_be_put_in_order_are_refused(tmp_path: Path) -> None:
    stored = {**EMBEDDING, "blk.0.attn_q.weight": f32((12, 8), [0.0] * 96)}
    with pytest.raises(CheckpointError, match=r"q_proj\.weight has 12 rows for 4 heads"):
        source_of(tmp_path, metadata("llama"), stored)


def test_gemmas_norms_are_stored_with_one_added(tmp_path: Path) -> None:
    names = {
        "output_norm": "model.norm",
        "blk.0.attn_norm": "model.layers.0.input_layernorm",
        "blk.0.post_attention_norm": "model.layers.0.post_attention_layernorm",
        "blk.0.ffn_norm": "model.layers.0.pre_feedforward_layernorm",
        "blk.0.post_ffw_norm": "model.layers.0.post_feedforward_layernorm",
        "blk.0.attn_q_norm": "model.layers.0.self_attn.q_norm",
    }
    tensors = {f"{name}.weight": f32((2,), [1.5, 0.75]) for name in names}
    source = source_of(tmp_path, metadata("gemma3"), {**EMBEDDING, **tensors})
    for name in names.values():
        assert source.tensor(f"{name}.weight").tolist() == [0.5, -0.25]
    assert torch.equal(source.tensor("model.embed_tokens.weight").flatten(), torch.arange(80.0))


def test_phi3_has_its_projections_in_one(tmp_path: Path) -> None:
    tensors = {"blk.0.attn_qkv.weight": counted(4, 2), "blk.0.ffn_up.weight": counted(4, 2)}
    source = source_of(tmp_path, metadata("phi3"), {**EMBEDDING, **tensors})
    assert source.names >= {
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
    }


def test_several_files_are_one_model(tmp_path: Path) -> None:
    first = write(tmp_path / "m-00001-of-00002.gguf", metadata(), EMBEDDING)
    write(tmp_path / "m-00002-of-00002.gguf", {"split.no": 1}, {"output.weight": counted(10, 8)})
    assert GGUFSource.open(first).names == {"model.embed_tokens.weight", "lm_head.weight"}
    write(tmp_path / "m-00002-of-00002.gguf", {"split.no": 1}, EMBEDDING)
    with pytest.raises(CheckpointError, match="as another file of the model"):
        GGUFSource.open(first)


def test_tensors_that_the_architecture_lacks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"blk\.0\.ffn_gate_exps\.weight"):
        source_of(tmp_path, metadata("llama"), {**EMBEDDING, "blk.0.ffn_gate_exps.weight": counted(2, 2, 2)})


MIXTURE = {"expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": 4}


def test_experts_are_one_by_one_in_the_model(tmp_path: Path) -> None:
    stored = counted(3, 4, 8)
    source = source_of(
        tmp_path, metadata("qwen3moe", **MIXTURE), {**EMBEDDING, "blk.1.ffn_gate_exps.weight": stored}
    )
    for expert in range(3):
        name = f"model.layers.1.mlp.experts.{expert}.gate_proj.weight"
        assert source.shape(name) == (4, 8)
        expected = torch.arange(expert * 32.0, expert * 32 + 32).reshape(4, 8)
        assert torch.equal(source.tensor(name, rows=slice(1, 3)), expected[1:3])


def test_experts_are_one_tensor_where_the_model_has_one(tmp_path: Path) -> None:
    """gpt-oss: gate's and up's columns alternate, and inputs come first."""
    gate, up = torch.arange(96.0).reshape(3, 4, 8), torch.arange(96.0).reshape(3, 4, 8) + 96
    tensors = {
        "blk.0.ffn_up_exps.weight": f32((3, 4, 8), up.flatten().tolist()),
        "blk.0.ffn_gate_exps.weight": f32((3, 4, 8), gate.flatten().tolist()),
        "blk.0.ffn_gate_exps.bias": counted(3, 4),
        "blk.0.ffn_up_exps.bias": counted(3, 4),
        "blk.0.ffn_down_exps.weight": counted(3, 8, 4),
    }
    window = {"attention.sliding_window": 4}
    source = source_of(tmp_path, metadata("gpt-oss", **MIXTURE, **window), {**EMBEDDING, **tensors})
    name = "model.layers.0.mlp.experts.gate_up_proj"
    expected = torch.stack((gate, up), 2).flatten(1, 2).transpose(1, 2)
    assert source.shape(name) == tuple(expected.shape) == (3, 8, 8)
    for rows in parts_of(3, 1):
        for columns in parts_of(8, 4):
            assert torch.equal(source.tensor(name, rows=rows, columns=columns), expected[rows, columns])
    assert source.tensor(f"{name}_bias")[1].tolist() == [4, 4, 5, 5, 6, 6, 7, 7]
    assert source.tensor("model.layers.0.mlp.experts.down_proj").shape == (3, 4, 8)
    other = {**EMBEDDING, **tensors, "blk.0.ffn_up_exps.weight": counted(3, 5, 8)}
    with pytest.raises(CheckpointError, match=r"have shapes \[3, 4, 8\] and \[3, 5, 8\]"):
        source_of(tmp_path, metadata("gpt-oss", **MIXTURE, **window), other)


def test_the_number_of_experts_is_that_of_their_tensors(tmp_path: Path) -> None:
    tensors = {"blk.0.ffn_up_exps.weight": counted(2, 2, 2)}
    with pytest.raises(CheckpointError, match=r"expert_count is 2147483648, but .* tensors for 2 experts"):
        config(tmp_path, metadata("qwen3moe", **{**MIXTURE, "expert_count": 1 << 31}), tensors)


def test_a_llama_with_experts_is_mixtral_and_an_olmo2_with_windows_olmo3(tmp_path: Path) -> None:
    assert config(tmp_path, metadata("llama", **MIXTURE))["architectures"] == ["MixtralForCausalLM"]
    windows = {"attention.sliding_window": 64, "attention.sliding_window_pattern": [True, False]}
    found = config(tmp_path, metadata("olmo2", **windows))
    assert found["architectures"] == ["Olmo3ForCausalLM"]
    assert found["layer_types"] == ["sliding_attention", "full_attention"]


def config(tmp_path: Path, meta: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
    return config_of(read_gguf(write(tmp_path / "m.gguf", meta, {**EMBEDDING, **(tensors or {})})))


FURTHER = {
    "attention.layer_norm_epsilon": 1e-5,
    "attention.sliding_window": 64,
    "expert_count": 4,
    "expert_used_count": 2,
}


@pytest.mark.parametrize("architecture", DECODERS)
def test_transformers_understands_the_configuration(architecture: str, tmp_path: Path) -> None:
    own = FURTHER if architecture not in ("llama", "olmo2") else {}
    found = config(tmp_path, {**metadata(architecture, **own), "tokenizer.ggml.eos_token_id": 7})
    read = AutoConfig.for_model(**found)
    assert read.architectures == [ARCHITECTURES[architecture].name]
    expected = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 10,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "eos_token_id": 7,
    }
    assert {key: getattr(read, key) for key in expected} == expected
    eps = ARCHITECTURES[architecture].eps
    assert not eps or getattr(read, eps) == 1e-5
    parameters = read.rope_parameters.get("full_attention", read.rope_parameters)
    assert parameters["rope_theta"] == 10_000.0


def test_gemma3_slides_in_five_layers_of_six(tmp_path: Path) -> None:
    meta = metadata(
        "gemma3", block_count=7, **{"attention.sliding_window": 64, "rope.freq_base": 1_000_000.0}
    )
    read = AutoConfig.for_model(**config(tmp_path, meta))
    assert read.layer_types == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert (read.sliding_window, read.query_pre_attn_scalar) == (64, 4)
    assert read.rope_parameters["full_attention"]["rope_theta"] == 1_000_000.0
    assert read.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0


def test_gemma2_slides_in_every_other_layer(tmp_path: Path) -> None:
    read = AutoConfig.for_model(**config(tmp_path, metadata("gemma2", block_count=3)))
    assert read.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recognised_by_its_frequencies(factor: float, tmp_path: Path) -> None:
    pairs, theta, factors = 64, 500_000.0, []
    for at in range(pairs):
        wavelength = 2 * math.pi * theta ** (at / pairs)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    meta = metadata("llama", **{"rope.freq_base": theta})
    scaling = config(tmp_path, meta, {"rope_freqs.weight": f32((pairs,), factors)})["rope_scaling"]
    assert scaling == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors[40] *= 1.5
    with pytest.raises(UnsupportedModel, match="isn't of Llama 3's kind"):
        config(tmp_path, meta, {"rope_freqs.weight": f32((pairs,), factors)})


def test_other_scalings(tmp_path: Path) -> None:
    linear = metadata(**{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert config(tmp_path, linear)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    yarn = metadata(
        **{
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        }
    )
    assert config(tmp_path, yarn)["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    with pytest.raises(UnsupportedModel, match=r"rope\.scaling\.type 'new' isn't supported"):
        config(tmp_path, metadata(**{"rope.scaling.type": "new"}))
    factors = {
        "rope_factors_long.weight": f32((2,), [2.0, 4.0]),
        "rope_factors_short.weight": f32((2,), [1.0, 2.0]),
    }
    long = metadata("phi3", **{"rope.scaling.original_context_length": 64})
    assert config(tmp_path, long, factors)["rope_scaling"] == {
        "rope_type": "longrope",
        "long_factor": [2.0, 4.0],
        "short_factor": [1.0, 2.0],
        "original_max_position_embeddings": 64,
    }


@pytest.mark.parametrize(
    ("name", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")]
)
def test_the_dtype_is_that_of_the_matrices(name: str, dtype: str, tmp_path: Path) -> None:
    values, size = SIZES[name]
    tensors = {"token_embd.weight": Tensor((1, 32), NUMBERS[name], bytes(32 // values * size))}
    assert config(tmp_path, metadata(), {**tensors, "output_norm.weight": counted(8)})["torch_dtype"] == dtype


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"embedding_length": None}, "embedding_length is None; it must be a positive integer"),
        ({"embedding_length": "8"}, "embedding_length is '8'"),
        ({"block_count": 0}, "block_count is 0"),
        ({"block_count": 1 << 31}, "block_count is 2147483648; it may be at most 4096"),
        ({"attention.head_count_kv": [2, 1]}, "head_count_kv is an array"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon is nan"),
        ({"rope.freq_base": float("inf")}, "freq_base is inf"),
        ({"rope.dimension_count": 1 << 31}, "rope.dimension_count is 2147483648; it may be at most 4"),
    ],
)
def test_numbers_that_are_missing_or_wrong_are_named(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        config(tmp_path, metadata(**changes))
    assert named in caught.value.message


def test_part_of_a_head_may_be_rotated(tmp_path: Path) -> None:
    assert config(tmp_path, metadata("phi3", **{"rope.dimension_count": 3}))["partial_rotary_factor"] == 0.75
    assert config(tmp_path, metadata("phi3"))["partial_rotary_factor"] == 1.0


def test_numbers_given_for_each_layer_may_be_the_same(tmp_path: Path) -> None:
    assert config(tmp_path, metadata(**{"attention.head_count_kv": [2, 2]}))["num_key_value_heads"] == 2


def test_other_architectures_are_refused_with_what_runs_them(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"architecture 'mamba'.*engine: llama"):
        config(tmp_path, metadata("mamba"))
    with pytest.raises(CheckpointError, match=r"general\.architecture is None"):
        config(tmp_path, {"k": 1})
