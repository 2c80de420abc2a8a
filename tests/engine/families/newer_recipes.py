"""More families that run, each with what sets it apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.engine.families.recipe import (
    CONTEXT,
    HEADS,
    LOCAL,
    MLA,
    MOE,
    ROUTED,
    SHAPE,
    SHARED,
    Recipe,
    family,
)

_OWN_SHAPE = tuple(key for key in SHAPE if key not in SHARED)
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

NEWER: Mapping[str, Recipe] = {
    "aria_text": family("aria_text", head_dim=8, moe_num_experts=4),
    "axk1": family("axk1", **ROUTED, **MLA, mlp_layer_types=["dense", "sparse", "sparse"]),
    "beam": family(
        "beam",
        head_dim=8,
        sliding_window=8,
        n_group=1,
        topk_group=1,
        **MOE,
        layer_types=_MIXED,
        mlp_layer_types=["dense", "sparse", "sparse"],
    ),
    "cohere2_moe": family("cohere2_moe", head_dim=8, num_experts=4, sliding_window=8, logit_scale=2.0),
    "cohere_compass_text": family("cohere_compass_text", rope_parameters={"full_attention": _ROPE}),
    "ctrl": family("ctrl", omits=_OWN_SHAPE, n_embd=32, n_layer=3, n_head=4, n_positions=CONTEXT, dff=48),
    "dbrx": family(
        "dbrx",
        omits=_OWN_SHAPE,
        d_model=32,
        n_heads=4,
        n_layers=3,
        max_seq_len=CONTEXT,
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    "gemma4_unified_text": family(
        "gemma4_unified_text", head_dim=8, global_head_dim=16, sliding_window=8, layer_types=_MIXED[::-1]
    ),
    "gpt-sw3": family("gpt-sw3", omits=_OWN_SHAPE, n_embd=32, n_layer=3, n_head=4, n_positions=CONTEXT),
    "granite_swa": family("granite_swa", sliding_window=8, layer_types=_MIXED),
    "granitemoe_swa": family("granitemoe_swa", sliding_window=8, layer_types=_MIXED, **LOCAL),
    "internlm3": family("internlm3", head_dim=8),
    "iquestcoder": family("iquestcoder", head_dim=8),
    "kolibri1": family(
        "kolibri1",
        head_dim=8,
        sliding_window=8,
        layer_types=_MIXED,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=16,
        **LOCAL,
    ),
    "mellum": family("mellum", head_dim=8, sliding_window=8, moe_intermediate_size=24, **LOCAL),
    "mimo_v2_flash": family("mimo_v2_flash", head_dim=8, sliding_window=8, **ROUTED),
    "minicpm3": family("minicpm3", **MLA, head_dim=4, dim_model_base=16),
    "minimax_m3_vl_text": family(
        "minimax_m3_vl_text",
        head_dim=8,
        rotary_dim=4,
        dense_intermediate_size=48,
        shared_intermediate_size=16,
        mlp_layer_types=["dense", "sparse", "sparse"],
        **LOCAL,
    ),
    "moshi": family("moshi", omits=("intermediate_size", *HEADS), head_dim=8, sliding_window=8, ffn_dim=48),
}
