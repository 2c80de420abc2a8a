"""Checkpoints of the families that the engine has classes for, each with what sets the family apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.engine.families.recipe import Recipe, family

_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_LONGROPE: Mapping[str, Any] = {  # texts of up to 8 tokens would have other frequencies in transformers
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 8,
    "short_factor": [1.0, 1.5],
    "long_factor": [1.5, 4.0],
    "partial_rotary_factor": 0.5,
}
_EXPERTS: Mapping[str, Any] = {
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
_WINDOW: Mapping[str, Any] = {"use_sliding_window": True, "sliding_window": 8}

NATIVE: Mapping[str, Recipe] = {
    "llama": family("llama"),
    "llama-biases": family("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-yarn": family("llama", rope_parameters=_YARN),
    "llama-linear": family(
        "llama", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
    ),
    "qwen2": family("qwen2"),
    "qwen2-window": family("qwen2", max_window_layers=1, **_WINDOW),
    "qwen3": family("qwen3", head_dim=16),
    "qwen3-window": family("qwen3", head_dim=16, max_window_layers=2, **_WINDOW),
    "qwen3_moe": family("qwen3_moe", norm_topk_prob=True, **_EXPERTS),
    "qwen3_moe-some-layers": family("qwen3_moe", mlp_only_layers=[0], decoder_sparse_step=1, **_EXPERTS),
    "qwen3_moe-window": family("qwen3_moe", decoder_sparse_step=2, **_EXPERTS, **_WINDOW),
    "mistral": family("mistral", sliding_window=None),
    "mistral-window": family("mistral", head_dim=16, sliding_window=8),
    "ministral": family("ministral", head_dim=8, sliding_window=8),
    "ministral-mixed": family(
        "ministral",
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": family("phi3"),
    "phi3-window": family("phi3", sliding_window=8),
    "phi3-longrope": family(
        "phi3", original_max_position_embeddings=8, rope_parameters=_LONGROPE, tie_word_embeddings=True
    ),
    "gemma3": family(
        "gemma3_text", head_dim=16, sliding_window=8, layer_types=None, sliding_window_pattern=2
    ),
    "gemma3-caps": family(
        "gemma3_text",
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=24,
        final_logit_softcapping=3.0,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    "smollm3": family("smollm3", no_rope_layer_interval=2),
    "smollm3-window": family("smollm3", no_rope_layers=[1, 0, 0], **_WINDOW),
    "granite": family(
        "granite",
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        attention_bias=True,
        mlp_bias=True,
    ),
    "olmo2": family("olmo2"),
    "olmo2-tied": family("olmo2", tie_word_embeddings=True, attention_bias=True),
    "olmo3": family(
        "olmo3",
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": _YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}
