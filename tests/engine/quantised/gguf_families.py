"""Tiny models of transformers as GGUF files, by the rules of llama.cpp's converter for each family.

The names of tensors were compared with those of llama.cpp's own package `gguf`; the tests need only these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.engine.quantised.gguf_models import NAMES, f32, permuted, q8_0
from tests.engine.quantised.gguf_writer import Tensor, write
from tests.engine.quantised.test_gguf_tokenizer import byte_level

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "initializer_range": 0.15,
}
MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
MIXTRAL = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}
_EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+)\.weight")

Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """`names`: the model's leaf → the file's; `keys`: metadata that not every family has, from its config."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    keys: Callable[[Keys], Keys] = lambda config: {}
    permuted: bool = False
    plus_one: bool = False
    eps: str = "rms_norm_eps"


def _experts(key: str) -> Callable[[Keys], Keys]:
    return lambda config: {
        "expert_count": config.get(key) or config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config.get("moe_intermediate_size") or config["intermediate_size"],
    }


def _qwen2_moe(config: Keys) -> Keys:
    shared = config["shared_expert_intermediate_size"]
    return {**_experts("num_experts")(config), "expert_shared_feed_forward_length": shared}


def _granite(config: Keys) -> Keys:
    return {
        "attention.scale": config["attention_multiplier"],
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "logit_scale": config["logits_scaling"],
    }


def _slides(config: Keys) -> Keys:
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    return {
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": slides,
    }


def _logit_scale(config: Keys) -> Keys:
    return {"logit_scale": config["logit_scale"]}


_AFTER = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_ROUTER = {"mlp.gate": "ffn_gate_inp"}
_SHARED = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 3.0,
}
_GLM4 = {
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.gate_up_proj": "ffn_up",
}
_KINDS = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 4}

FAMILIES: Mapping[str, Family] = {
    "arcee": Family("Arcee", permuted=True),
    "cohere2": Family(
        "Cohere2",
        {**_KINDS, "logit_scale": 0.5},
        keys=lambda config: {**_slides(config), **_logit_scale(config)},
        eps="layer_norm_eps",
    ),
    "command-r": Family("Cohere", {"logit_scale": 0.5}, keys=_logit_scale, eps="layer_norm_eps"),
    "ernie4_5": Family("Ernie4_5"),
    "exaone4": Family("Exaone4", _KINDS, _AFTER, _slides),
    "gemma": Family("Gemma", {"tie_word_embeddings": True}, plus_one=True),
    "glm4": Family("Glm4", {"partial_rotary_factor": 0.5, "attention_bias": True}, _GLM4),
    "granite": Family("Granite", _GRANITE, keys=_granite, permuted=True),
    "granitemoe": Family(
        "GraniteMoe",
        {**_GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32},
        {"block_sparse_moe.router.layer": "ffn_gate_inp", "block_sparse_moe.output_linear": "ffn_down_exps"},
        lambda config: {**_granite(config), **_experts("num_local_experts")(config)},
        permuted=True,
    ),
    "gpt-oss": Family(
        "GptOss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32, "sliding_window": 4},
        {"post_attention_layernorm": "post_attention_norm", "mlp.router": "ffn_gate_inp"},
        lambda config: {
            **_experts("num_local_experts")(config),
            "attention.sliding_window": config["sliding_window"],
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
    ),
    "hunyuan-dense": Family(
        "HunYuanDenseV1",
        names={"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"},
    ),
    "llama": Family(  # Mixtral
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        {"block_sparse_moe.gate": "ffn_gate_inp"},
        _experts("num_local_experts"),
        permuted=True,
    ),
    "nemotron": Family("Nemotron", {"partial_rotary_factor": 0.5}, plus_one=True, eps="norm_eps"),
    "olmo": Family(
        "Olmo",
        {"clip_qkv": 0.6},
        keys=lambda config: {"attention.clamp_kqv": config["clip_qkv"]},
        permuted=True,
        eps="",
    ),
    "olmo2": Family("Olmo2", {}, _AFTER),
    "olmo2-slides": Family("Olmo3", _KINDS, _AFTER, _slides),
    "olmoe": Family("Olmoe", {"num_experts_per_tok": 2, "num_experts": 4}, _ROUTER, _experts("num_experts")),
    "qwen2moe": Family(
        "Qwen2Moe",
        {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 64},
        {**_ROUTER, **_SHARED},
        _qwen2_moe,
    ),
    "qwen3moe": Family(
        "Qwen3Moe", {**MOE, "num_experts": 4, "norm_topk_prob": True}, _ROUTER, _experts("num_experts")
    ),
    "seed_oss": Family("SeedOss", names={"post_attention_layernorm": "post_attention_norm"}),
    "smollm3": Family("SmolLM3", permuted=True),
    "starcoder2": Family(
        "Starcoder2",
        {"sliding_window": None},
        {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
        eps="norm_epsilon",
    ),
}


def write_family(name: str, root: Path) -> tuple[Path, Path]:
    """The GGUF file, and a checkpoint with what its tensors stand for."""
    family = FAMILIES[name]
    plain = _make(family, root / "plain")
    config = json.loads((plain / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors: dict[str, Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, tuple[str, torch.Tensor]]] = {}
    for full_name, tensor in load_file(plain / "model.safetensors").items():
        if match := _EXPERT.fullmatch(full_name):
            leaf = {**EXPERTS, **MIXTRAL}[match[3]]
            experts.setdefault(f"blk.{match[1].split('.')[2]}.{leaf}.weight", {})[int(match[2])] = (
                full_name,
                tensor,
            )
            continue
        num_heads = heads.get(full_name.split(".")[-2], 0) if family.permuted else 0
        stored = permuted(tensor, num_heads) if num_heads else tensor
        stem, _, kind = full_name.rpartition(".")
        is_plus = family.plus_one and stem.endswith("norm") and kind == "weight"
        parts, back = _divided(full_name, stored + 1 if is_plus else stored)
        for end, part in parts.items():
            file_name = gguf_name(end, family.names)
            tensors[file_name], parts[end] = _written(part)
        found = back(list(parts.values())) - (1 if is_plus else 0)
        meant[full_name] = _unpermuted(found, num_heads) if num_heads else found
    for file_name, by_number in experts.items():
        stack = torch.stack([by_number[number][1] for number in range(len(by_number))])
        tensors[file_name], found = _written(stack)
        meant |= {by_number[number][0]: found[number].contiguous() for number in range(len(found))}
    save_file(
        {name: t.contiguous() for name, t in meant.items()}, plain / "model.safetensors", {"format": "pt"}
    )
    metadata = {**metadata_of(name.partition("-slides")[0], family, config), **byte_level()}
    return write(root / "m.gguf", metadata, tensors), plain


def _make(family: Family, directory: Path) -> Path:
    torch.manual_seed(3)
    config_class = getattr(transformers, f"{family.model}Config")
    model = getattr(transformers, f"{family.model}ForCausalLM")(config_class(**{**SHAPE, **family.options}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    return directory


def _written(tensor: torch.Tensor) -> tuple[Tensor, torch.Tensor]:
    """Matrices in Q8_0, but for small ones, which the converter leaves."""
    if tensor.dim() == 1 or tensor.shape[-1] % 32 or tensor.numel() < 1024:
        return f32(tensor)
    return q8_0(tensor)


def _unpermuted(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    return weight.reshape(num_heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


Joins = Callable[[list[torch.Tensor]], torch.Tensor]


def _divided(name: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], Joins]:
    """The tensors that the file has of one of the model's, and how they are put together again."""
    stem = name.removesuffix("_bias").removesuffix(".weight")
    prefix = ".".join(name.split(".")[:3])
    kind = "bias" if name.endswith("_bias") else "weight"
    if stem.endswith("experts.gate_up_proj"):  # gpt-oss: columns of both, one after the other
        parts = [tensor[..., side::2] for side in range(2)]
        parts = parts if kind == "bias" else [part.transpose(1, 2) for part in parts]
        named = {f"{prefix}.{leaf}.{kind}": part for leaf, part in zip(("gate", "up"), parts, strict=True)}
        return named, lambda found: torch.stack(
            found if kind == "bias" else [part.transpose(1, 2) for part in found], -1
        ).flatten(-2)
    if stem.endswith("experts.down_proj"):
        if kind == "bias":
            return {f"{prefix}.down.bias": tensor}, lambda found: found[0]
        return {f"{prefix}.down.weight": tensor.transpose(1, 2)}, lambda found: found[0].transpose(1, 2)
    if stem.endswith("block_sparse_moe.input_linear"):
        gate, up = tensor.chunk(2, dim=1)
        return {f"{prefix}.gate.weight": gate, f"{prefix}.up.weight": up}, lambda found: torch.cat(found, 1)
    if name.endswith("shared_expert_gate.weight"):
        return {name: tensor.flatten()}, lambda found: found[0].reshape(1, -1)
    if name.endswith("self_attn.sinks"):
        return {f"{prefix}.sinks.weight": tensor}, lambda found: found[0]
    return {name: tensor}, lambda found: found[0]


_LEAVES = {"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps", "sinks": "attn_sinks"}


def gguf_name(name: str, own: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    known = {**NAMES, **_LEAVES, **own}
    if stem.startswith("model.layers."):
        _, _, layer, leaf = stem.split(".", 3)
        return f"blk.{layer}.{known[leaf]}.{kind}"
    return f"{known[stem]}.{kind}"


def metadata_of(architecture: str, family: Family, config: Keys) -> dict[str, Any]:
    rope: dict[str, Any] = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    factor = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    values = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "rope.dimension_count": int(head_dim * factor),
        "rope.freq_base": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        **family.keys(config),
    }
    if family.eps:
        key = "layer_norm_rms_epsilon" if family.eps == "rms_norm_eps" else "layer_norm_epsilon"
        values[f"attention.{key}"] = config[family.eps]
    return {"general.architecture": architecture, **{f"{architecture}.{k}": v for k, v in values.items()}}
