"""Checkpoints as GGUF files, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.engine.quantised.gguf_writer import Tensor, write

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, leaf = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[leaf]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
    architecture = config["model_type"]
    rope = config.get("rope_parameters") or {}
    values = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config.get("head_dim")
        or config["hidden_size"] // config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
    }
    return {"general.architecture": architecture, **{f"{architecture}.{k}": v for k, v in values.items()}}


def q8_0(weight: torch.Tensor) -> tuple[Tensor, torch.Tensor]:
    """And what it stands for."""
    blocks = weight.float().reshape(-1, 32)
    scales = (blocks.abs().amax(1, keepdim=True) / 127).half()
    values = (blocks / scales.float().clamp(min=1e-12)).round().to(torch.int8)
    raw = torch.cat((scales.view(torch.uint8), values.view(torch.uint8)), dim=1)
    dequantised = (values.float() * scales.float()).reshape(weight.shape)
    return Tensor(tuple(weight.shape), 8, raw.numpy().tobytes()), dequantised


def f32(weight: torch.Tensor) -> tuple[Tensor, torch.Tensor]:
    return Tensor(tuple(weight.shape), 0, weight.float().contiguous().numpy().tobytes()), weight.float()


def permuted(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Llama's rows of queries and keys: a head's halves interleaved."""
    return weight.reshape(num_heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def convert(
    source: Path, path: Path, *, quantised: bool, tokenizer: Mapping[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """Write `source` to the GGUF file `path`. The tensors that it stands for, by Hugging Face's names."""
    config = json.loads((source / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors: dict[str, Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        write_tensor = q8_0 if quantised and tensor.dim() == 2 else f32
        num_heads = heads.get(name.split(".")[-2], 0) if config["model_type"] == "llama" else 0
        stored = permuted(tensor, num_heads) if num_heads else tensor
        tensors[gguf_name(name)], dequantised = write_tensor(stored)
        plain[name] = dequantised
    metadata = {
        **metadata_of(config),
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        **(tokenizer or {}),
    }
    write(path, metadata, tensors)
    return plain
