"""Families that are refused, each with words of the refusal."""

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
    VOCAB_SIZE,
    Recipe,
    family,
)

_OWN_SHAPE = tuple(key for key in SHAPE if key not in SHARED)
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}
_OWN_CODE = "doesn't support the attention interface"
_STATE = "carries a state"
_INDEX: dict[str, Any] = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
_DELTA: dict[str, Any] = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_CONV = ["conv", "full_attention", "conv"]
_LATENT: dict[str, Any] = {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_BYTES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "hidden_size_global": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
}

REFUSED_RECIPES: Mapping[str, tuple[Recipe, str]] = {
    "doge": (family("doge"), "makes attention masks of its own"),
    "diffllama": (family("diffllama"), "uses an attention layer several times"),
    "lfm2": (family("lfm2", layer_types=_CONV), "doesn't attend"),
    "llama4_text": (
        family("llama4_text", **LOCAL, head_dim=8, intermediate_size_mlp=48),
        "more than positions",
    ),
    "stablelm": (family("stablelm"), _OWN_CODE),
    "falcon": (family("falcon"), _OWN_CODE),
    "mamba": (
        family("mamba", omits=("num_attention_heads", "num_key_value_heads", "max_position_embeddings")),
        _STATE,
    ),
    "qwen3_next": (family("qwen3_next", head_dim=8, **MOE), _STATE),
    "falcon_h1": (family("falcon_h1"), _STATE),
    "axk2": (family("axk2", **ROUTED, **MLA, **_INDEX, gated_norm_rank=4), "more than a mask"),
    "bailing_hybrid": (
        family(
            "bailing_hybrid",
            num_experts=4,
            num_experts_per_token=2,
            num_expert_group=1,
            topk_group=1,
            moe_intermediate_size=24,
            **_LATENT,
            linear_head_dim=8,
            linear_num_heads=4,
            layer_group_size=2,
        ),
        _STATE,
    ),
    "bamba": (
        family("bamba", mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, attn_layer_indices=[1]),
        _STATE,
    ),
    "bert-generation": (family("bert-generation", omits=HEADS, is_decoder=True), "isn't supported"),
    "biogpt": (family("biogpt", omits=HEADS), _OWN_CODE),
    "bloom": (
        family("bloom", omits=_OWN_SHAPE, hidden_size=32, n_layer=3, n_head=4, seq_length=CONTEXT),
        _OWN_CODE,
    ),
    "blt": (
        family(
            "blt",
            omits=_OWN_SHAPE,
            encoder_hash_byte_group_vocab=64,
            patcher_config=_BYTES,
            encoder_config=_BYTES,
            decoder_config={**_BYTES, "cross_attn_k": 2},
            global_config=_BYTES,
        ),
        _OWN_CODE,
    ),
    "codegen": (family("codegen", omits=_OWN_SHAPE, **_GPT, n_ctx=CONTEXT, rotary_dim=4), _OWN_CODE),
    "cpmant": (
        family(
            "cpmant",
            omits=_OWN_SHAPE,
            hidden_size=32,
            num_attention_heads=4,
            dim_head=8,
            dim_ff=48,
            num_hidden_layers=2,
        ),
        _OWN_CODE,
    ),
    "deepseek_v32": (family("deepseek_v32", **ROUTED, **MLA, **_INDEX), "more than a mask"),
    "dots3_note_text": (family("dots3_note_text", **ROUTED, **MLA, **_INDEX), "more than a mask"),
    "falcon_mamba": (
        family(
            "falcon_mamba",
            omits=(
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
                "intermediate_size",
            ),
        ),
        _STATE,
    ),
    "glm_moe_dsa": (family("glm_moe_dsa", **ROUTED, **MLA, **_INDEX), "more than a mask"),
    "gpt_neo": (
        family(
            "gpt_neo",
            omits=("num_hidden_layers", "num_attention_heads", *HEADS),
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=8,
        ),
        _OWN_CODE,
    ),
    "gpt_neox_japanese": (family("gpt_neox_japanese", omits=("intermediate_size", *HEADS)), _OWN_CODE),
    "gptj": (family("gptj", omits=_OWN_SHAPE, **_GPT, rotary_dim=4), _OWN_CODE),
    "hrm_text": (
        family("hrm_text", omits=HEADS, head_dim=8, num_layers_per_stack=1),
        "uses an attention layer several times",
    ),
    "hy_v4": (family("hy_v4", **ROUTED, **MLA, head_dim=12), "more than a mask"),
    "inkling_text": (family("inkling_text", head_dim=8, **ROUTED), _OWN_CODE),
    "inkling2_text": (family("inkling2_text", head_dim=8, **ROUTED), _OWN_CODE),
    "jamba": (
        family(
            "jamba",
            num_experts=4,
            num_experts_per_tok=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_d_state=8,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
        _STATE,
    ),
    "kimi_linear": (
        family("kimi_linear", num_experts=4, num_experts_per_token=2, moe_intermediate_size=24, **_LATENT),
        _STATE,
    ),
    "lfm2_moe": (
        family("lfm2_moe", layer_types=_CONV, **MOE, num_dense_layers=1),
        "doesn't attend",
    ),
    "lfm3": (family("lfm3", head_dim=8, layer_types=_CONV), "doesn't attend"),
    "mamba2": (
        family(
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
        _STATE,
    ),
    "minimax": (family("minimax", head_dim=8, **LOCAL), "doesn't attend"),
    "minimax_m3_vl_text-sparse": (
        family(
            "minimax_m3_vl_text",
            head_dim=8,
            rotary_dim=4,
            dense_intermediate_size=48,
            shared_intermediate_size=16,
            layer_types=["minimax_m3_sparse"] * 3,
            **LOCAL,
        ),
        "more than a mask",
    ),
    "mpt": (
        family("mpt", omits=_OWN_SHAPE, d_model=32, n_heads=4, n_layers=3, max_seq_len=CONTEXT),
        _OWN_CODE,
    ),
    "nemotron_h": (
        family(
            "nemotron_h",
            omits=("num_hidden_layers",),
            layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
            head_dim=8,
            ssm_state_size=8,
            mamba_num_heads=4,
            mamba_head_dim=8,
            n_groups=1,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            moe_shared_expert_intermediate_size=16,
        ),
        _STATE,
    ),
    "olmo_hybrid": (family("olmo_hybrid", **{k: v for k, v in _DELTA.items() if k != "head_dim"}), _STATE),
    "openai-gpt": (family("openai-gpt", omits=_OWN_SHAPE, **_GPT), _OWN_CODE),
    "qwen3_5_text": (family("qwen3_5_text", **_DELTA), _STATE),
    "qwen3_5_moe_text": (
        family("qwen3_5_moe_text", **_DELTA, **MOE, shared_expert_intermediate_size=16),
        _STATE,
    ),
    "qwen4_exp_text": (
        family(
            "qwen4_exp_text",
            **_DELTA,
            **MOE,
            shared_expert_intermediate_size=16,
            indexer_n_heads=2,
            indexer_kv_heads=1,
            indexer_head_dim=8,
            indexer_budget=64,
            indexer_compress_ratio=4,
            hc_lowrank=4,
            ngram_vocab_size_base=64,
            split_ngram_parts=1,
        ),
        _STATE,
    ),
    "recurrent_gemma": (
        family(
            "recurrent_gemma",
            lru_width=32,
            head_dim=8,
            attention_window_size=8,
        ),
        "how long a context may be",
    ),
    "rwkv": (
        family(
            "rwkv",
            omits=("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
            context_length=CONTEXT,
            attention_hidden_size=32,
        ),
        _STATE,
    ),
    "trocr": (
        family(
            "trocr",
            omits=tuple(key for key in _OWN_SHAPE if key != "max_position_embeddings"),
            d_model=32,
            decoder_layers=2,
            decoder_attention_heads=2,
            decoder_ffn_dim=16,
        ),
        _OWN_CODE,
    ),
    "xglm": (
        family(
            "xglm",
            omits=tuple(key for key in _OWN_SHAPE if key != "max_position_embeddings"),
            d_model=32,
            ffn_dim=48,
            num_layers=3,
            attention_heads=4,
        ),
        _OWN_CODE,
    ),
    "xlnet": (
        family("xlnet", omits=_OWN_SHAPE, d_model=32, n_layer=2, n_head=4, d_inner=48, d_head=8),
        _OWN_CODE,
    ),
    "xlstm": (
        family(
            "xlstm",
            omits=_OWN_SHAPE,
            hidden_size=32,
            embedding_dim=32,
            num_heads=2,
            num_blocks=2,
            num_hidden_layers=2,
        ),
        _STATE,
    ),
    "zamba": (
        family(
            "zamba",
            num_hidden_layers=6,
            mamba_d_state=8,
            mamba_dt_rank=4,
            attn_layer_period=2,
            attn_layer_offset=1,
            use_mamba_kernels=False,
            attention_hidden_size=64,
            attention_head_dim=16,
            n_mamba_heads=2,
        ),
        _STATE,
    ),
    "zamba2": (
        family(
            "zamba2",
            mamba_d_state=8,
            n_mamba_heads=8,
            mamba_ngroups=1,
            mamba_headdim=8,
            layers_block_type=["linear_attention", "hybrid", "linear_attention"],
            use_mamba_kernels=False,
            num_mem_blocks=1,
            adapter_rank=4,
        ),
        _STATE,
    ),
    "zaya": (
        family("zaya", head_dim=8, num_experts=4, moe_intermediate_size=24, router_hidden_size=16),
        "carries something from token to token",
    ),
}
