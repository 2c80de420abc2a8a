"""Families with layers that carry a state beside attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.engine.families.recipe import LOCAL, MLA, MOE, Recipe, family

DELTA_NET: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
MAMBA_2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}

STATES: Mapping[str, Recipe] = {
    "qwen3_next": family("qwen3_next", head_dim=8, **MOE, **DELTA_NET, shared_expert_intermediate_size=16),
    "qwen3_5_text": family("qwen3_5_text", head_dim=8, **DELTA_NET),
    "qwen3_5_moe_text": family(
        "qwen3_5_moe_text", head_dim=8, **MOE, **DELTA_NET, shared_expert_intermediate_size=16
    ),
    "olmo_hybrid": family("olmo_hybrid", **DELTA_NET),
    "lfm2": family("lfm2", layer_types=["conv", "full_attention", "conv"]),
    "lfm2_moe": family("lfm2_moe", layer_types=["conv", "full_attention", "conv"], **MOE, num_dense_layers=1),
    "falcon_h1": family("falcon_h1", **MAMBA_2, mamba_d_ssm=64, head_dim=8),
    "bamba": family("bamba", **MAMBA_2, attn_layer_indices=[1]),
    "granitemoehybrid-mamba": family(
        "granitemoehybrid",
        layer_types=["mamba", "attention", "mamba"],
        **{**MAMBA_2, "mamba_d_state": 16},  # with 8, plain transformers differs from itself by 6e-5
        **LOCAL,
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
    "jamba": family(
        "jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=4,
        mamba_d_state=16,  # with 8, plain transformers differs from itself by 1e-4
        mamba_dt_rank=4,
    ),
    "mamba": family(
        "mamba",
        num_hidden_layers=2,
        omits=("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    ),
    "bailing_hybrid": family(
        "bailing_hybrid",
        num_experts=4,
        num_experts_per_token=2,
        num_expert_group=1,
        topk_group=1,
        moe_intermediate_size=24,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        num_key_value_heads=4,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_group_size=2,
    ),
    "kimi_linear": family(
        "kimi_linear",
        **{**MLA, "q_lora_rank": None},
        **LOCAL,
        moe_intermediate_size=24,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
    ),
    "falcon_mamba": family(
        "falcon_mamba",
        omits=(
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "intermediate_size",
        ),
    ),
    "lfm3": family("lfm3", head_dim=8, layer_types=["conv", "full_attention", "conv"]),
    "mamba2": family(
        "mamba2",
        omits=(
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "intermediate_size",
        ),
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=1,
    ),
    "zamba": family(
        "zamba",
        num_hidden_layers=5,
        mamba_d_state=8,
        mamba_dt_rank=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        attention_hidden_size=64,
        attention_head_dim=16,
        n_mamba_heads=2,
    ),
    "zaya": family("zaya", head_dim=8, num_experts=4, moe_intermediate_size=24, router_hidden_size=16),
}
