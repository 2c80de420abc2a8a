"""Tiny random checkpoints, at least one of each family of decoders, which transformers builds and saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

VOCAB_SIZE = 128
CONTEXT = 128

_SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_SHARED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checkpoint's configuration: `options`, and what most families have in common but for `omits`."""

    model_type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    omits: tuple[str, ...] = ()  # of _SHAPE


def family(model_type: str, *, omits: tuple[str, ...] = (), **options: Any) -> Recipe:
    return Recipe(model_type=model_type, options=options, omits=omits)


_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
_MLA: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_HEADS = ("num_key_value_heads",)
_NO_ATTENTION = ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
_DELTA_NET: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_MAMBA_2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}

RECIPES: Mapping[str, Recipe] = {
    "llama": family("llama"),
    "qwen2": family("qwen2"),
    "qwen3": family("qwen3", head_dim=16),
    "arcee": family("arcee"),
    "apertus": family("apertus"),
    "bitnet": family("bitnet"),
    "cohere": family("cohere"),
    "dots1": family("dots1", **_ROUTED, n_shared_experts=1, first_k_dense_replace=1),
    "ernie4_5": family("ernie4_5", head_dim=16),
    "gemma": family("gemma", head_dim=16),
    "glm": family("glm", head_dim=8),
    "glm4": family("glm4", head_dim=8),
    "gpt2": family(
        "gpt2",
        omits=tuple(k for k in _SHAPE if k not in _SHARED),
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=CONTEXT,
    ),
    "gpt_neox": family("gpt_neox", omits=_HEADS),
    "gpt_bigcode": family(
        "gpt_bigcode",
        omits=tuple(k for k in _SHAPE if k not in _SHARED),
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=CONTEXT,
    ),
    "granite": family(
        "granite",
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    ),
    "granitemoe": family("granitemoe", **_LOCAL),
    "granitemoeshared": family("granitemoeshared", **_LOCAL, shared_intermediate_size=16),
    "helium": family("helium", head_dim=8),
    "hunyuan_v1_dense": family("hunyuan_v1_dense", head_dim=8),
    "hunyuan_v1_moe": family("hunyuan_v1_moe", head_dim=8, num_experts=4, moe_topk=2),
    "jais2": family("jais2"),
    "jetmoe": family("jetmoe", omits=("num_attention_heads",), **_LOCAL, kv_channels=8),
    "ministral3": family("ministral3", head_dim=8),
    "mistral": family("mistral", sliding_window=None),
    "mixtral": family("mixtral", **_LOCAL),
    "nanochat": family("nanochat"),
    "nemotron": family("nemotron"),
    "olmo": family("olmo"),
    "olmo2": family("olmo2"),
    "olmoe": family("olmoe", num_experts=4, num_experts_per_tok=2),
    "opt": family("opt", omits=("intermediate_size", *_HEADS), ffn_dim=48, word_embed_proj_dim=32),
    "persimmon": family("persimmon", omits=_HEADS),
    "phi": family("phi"),
    "phi3": family("phi3", sliding_window=None),
    "phimoe": family("phimoe", **_LOCAL),
    "qwen2_moe": family("qwen2_moe", **_MOE, shared_expert_intermediate_size=16),
    "qwen3_moe": family("qwen3_moe", **_MOE, head_dim=16),
    "seed_oss": family("seed_oss", head_dim=8),
    "smollm3": family("smollm3"),
    "starcoder2": family("starcoder2", sliding_window=None),
    "deepseek_v2": family("deepseek_v2", **_ROUTED, **_MLA, head_dim=4, first_k_dense_replace=1),
    "deepseek_v3": family("deepseek_v3", **_ROUTED, **_MLA, head_dim=4, first_k_dense_replace=1),
    "glm4_moe": family("glm4_moe", head_dim=8, **_ROUTED, first_k_dense_replace=1),
    "ernie4_5_moe": family(
        "ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_start_index=1
    ),
    "flex_olmo": family("flex_olmo", num_experts=4, num_experts_per_tok=2),
    "granitemoehybrid": family(
        "granitemoehybrid",
        layer_types=["attention"] * 3,
        mamba_n_heads=4,
        **_LOCAL,
        shared_intermediate_size=16,
    ),
    "minimax_m2": family("minimax_m2", head_dim=8, **_LOCAL),
    "solar_open": family("solar_open", head_dim=8, **_ROUTED),
    "youtu": family("youtu", **_MLA, pad_token_id=None),  # plain transformers sets the padding's row to 0
    "lfm2-attention": family("lfm2", layer_types=["full_attention"] * 3),
    "glm4_moe_lite": family("glm4_moe_lite", **_ROUTED, **_MLA),
    "hyperclovax": family("hyperclovax"),
    "laguna": family("laguna", head_dim=8, **_MOE),
    "hy_v3": family("hy_v3", head_dim=8, **_MOE),
    "ministral": family("ministral", head_dim=8, sliding_window=8),
    "mistral-window": family("mistral", sliding_window=8),
    "olmo3": family("olmo3", sliding_window=8),
    "cohere2": family("cohere2", sliding_window=8),
    "exaone4": family("exaone4", sliding_window=8),
    "gemma2": family("gemma2", head_dim=16, sliding_window=8),
    "gemma3_text": family("gemma3_text", head_dim=16, sliding_window=8),
    "gpt_oss": family("gpt_oss", head_dim=8, sliding_window=8, **_LOCAL),
    "vaultgemma": family("vaultgemma", head_dim=16, sliding_window=8),
    "afmoe": family(
        "afmoe",
        head_dim=8,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        num_dense_layers=1,
    ),
    "cwm": family("cwm", head_dim=8, sliding_window=8),
    "modernbert-decoder": family("modernbert-decoder", local_attention=8),
    "exaone_moe": family("exaone_moe", head_dim=8, **_MOE, sliding_window=8, n_group=1, topk_group=1),
    "longcat_flash": family(
        "longcat_flash",
        omits=("num_hidden_layers", "num_key_value_heads"),
        num_layers=2,
        head_dim=4,
        ffn_hidden_size=48,
        expert_ffn_hidden_size=16,
        n_routed_experts=4,
        zero_expert_num=2,
        moe_topk=2,
        **_MLA,
    ),
    "flint": family("flint"),
    "gemma3n_text": family(
        "gemma3n_text",
        head_dim=8,
        sliding_window=8,
        num_kv_shared_layers=1,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=128,
        altup_num_inputs=2,
        laurel_rank=4,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0, 0.0],
        intermediate_size=[48, 48, 48],
    ),
    "gemma4_text": family(
        "gemma4_text",
        head_dim=8,
        global_head_dim=16,
        sliding_window=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=128,
        num_kv_shared_layers=0,
    ),
    "qwen3_next": family("qwen3_next", head_dim=8, **_MOE, **_DELTA_NET, shared_expert_intermediate_size=16),
    "qwen3_5_text": family("qwen3_5_text", head_dim=8, **_DELTA_NET),
    "qwen3_5_moe_text": family(
        "qwen3_5_moe_text", head_dim=8, **_MOE, **_DELTA_NET, shared_expert_intermediate_size=16
    ),
    "olmo_hybrid": family("olmo_hybrid", **_DELTA_NET),
    "lfm2": family("lfm2", layer_types=["conv", "full_attention", "conv"]),
    "lfm2_moe": family(
        "lfm2_moe", layer_types=["conv", "full_attention", "conv"], **_MOE, num_dense_layers=1
    ),
    "falcon_h1": family("falcon_h1", **_MAMBA_2, mamba_d_ssm=64, head_dim=8),
    "bamba": family("bamba", **_MAMBA_2, attn_layer_indices=[1]),
    "granitemoehybrid-mamba": family(
        "granitemoehybrid",
        layer_types=["mamba", "attention", "mamba"],
        **_MAMBA_2,
        **_LOCAL,
        shared_intermediate_size=16,
    ),
    "zamba2": family(
        "zamba2",
        layers_block_type=["mamba", "hybrid", "mamba"],
        hybrid_layer_ids=[1],
        mamba_headdim=16,
        mamba_d_state=8,
        n_mamba_heads=4,
        adapter_rank=4,
        num_mem_blocks=1,
        chunk_size=8,
    ),
    "nemotron_h": family(
        "nemotron_h",
        head_dim=8,
        layers_block_type=["mamba", "attention", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=1,
        ssm_state_size=8,
        chunk_size=8,
    ),
    "kimi_linear": family(
        "kimi_linear",
        **{**_MLA, "q_lora_rank": None},
        **_LOCAL,
        moe_intermediate_size=24,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
    ),
    "bailing_hybrid": family(
        "bailing_hybrid",
        head_dim=8,
        **_MLA,
        **_LOCAL,
        moe_intermediate_size=24,
        n_group=1,
        topk_group=1,
        layer_group_size=3,
        first_k_dense_replace=1,
    ),
    "zaya": family("zaya", head_dim=8),
    "mamba": family("mamba", omits=_NO_ATTENTION, num_hidden_layers=2),
    "falcon_mamba": family("falcon_mamba", omits=_NO_ATTENTION, num_hidden_layers=2),
    "mamba2": family(
        "mamba2", omits=_NO_ATTENTION, num_heads=4, head_dim=16, n_groups=1, state_size=8, chunk_size=8
    ),
    "jamba": family(
        "jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=4,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "phi3-longrope": family(
        "phi3",
        sliding_window=None,
        max_position_embeddings=2 * CONTEXT,
        original_max_position_embeddings=CONTEXT,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "long_factor": [2.0] * 4,
            "short_factor": [1.0] * 4,
            "original_max_position_embeddings": CONTEXT,
        },
    ),
    "llama-yarn": family(
        "llama",
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "llama-linear": family(
        "llama", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "llama-dynamic": family(
        "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    ),
}

_REFUSED: Mapping[str, tuple[Recipe, str]] = {
    "doge": (family("doge"), "makes attention masks of its own"),
    "diffllama": (family("diffllama"), "uses an attention layer several times"),
    "llama4_text": (
        family("llama4_text", **_LOCAL, head_dim=8, intermediate_size_mlp=48),
        "more than positions",
    ),
    "stablelm": (family("stablelm"), "doesn't support the attention interface"),
    "falcon": (family("falcon"), "doesn't support the attention interface"),
    "recurrent_gemma": (family("recurrent_gemma"), "RecurrentGemmaRecurrentBlock"),
}
REFUSED: Mapping[str, str] = {name: words for name, (_, words) in _REFUSED.items()}
"""What the refusal of a family says."""


def recipe_of(name: str) -> Recipe:
    return _REFUSED[name][0] if name in _REFUSED else RECIPES[name]


def configuration(recipe: Recipe) -> dict[str, Any]:
    return {**{key: value for key, value in _SHAPE.items() if key not in recipe.omits}, **recipe.options}


def build(name: str) -> PreTrainedModel:
    return made(name, recipe_of(name))


def made(name: str, recipe: Recipe) -> PreTrainedModel:
    """In float32. Norms and biases are random, so that a forgotten one shows."""
    torch.manual_seed(sum(map(ord, name)))
    config = CONFIG_MAPPING[recipe.model_type](**configuration(recipe))
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[recipe.model_type])
    model: PreTrainedModel = model_class._from_config(config, attn_implementation="eager").eval()
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(0.3 * torch.randn_like(parameter))
        elif parameter.ndim < 2:
            parameter.copy_(0.3 * torch.randn_like(parameter))
        elif "embed" in name or "wte" in name:
            parameter.copy_(0.5 * torch.randn_like(parameter))
        else:
            parameter.copy_(torch.randn_like(parameter) * 1.2 * parameter.shape[-1] ** -0.5)


def save(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def plain(directory: Path) -> PreTrainedModel:
    """Plain transformers on a checkpoint: what the engine is compared with."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()  # type: ignore[no-any-return]
