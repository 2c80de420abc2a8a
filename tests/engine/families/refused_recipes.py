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
    "llama4_text": (
        family("llama4_text", **LOCAL, head_dim=8, intermediate_size_mlp=48),
        "more than positions",
    ),
    "stablelm": (family("stablelm"), _OWN_CODE),
    "falcon": (family("falcon"), _OWN_CODE),
    "axk2": (family("axk2", **ROUTED, **MLA, **_INDEX, gated_norm_rank=4), "more than a mask"),
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
    "deepseek_v4": (
        family(
            "deepseek_v4",
            omits=HEADS,
            head_dim=16,
            q_lora_rank=16,
            o_groups=2,
            o_lora_rank=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            sliding_window=8,
            index_head_dim=8,
            index_n_heads=2,
            layer_types=["heavily_compressed_attention", *["compressed_sparse_attention"] * 2],
        ),
        "attends to other tokens",
    ),
    "dots3_note_text": (family("dots3_note_text", **ROUTED, **MLA, **_INDEX), "more than a mask"),
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
    "openai-gpt": (family("openai-gpt", omits=_OWN_SHAPE, **_GPT), _OWN_CODE),
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
        "attention masks of its own",
    ),
    "recurrent_gemma": (
        family(
            "recurrent_gemma",
            lru_width=32,
            head_dim=8,
            attention_window_size=8,
        ),
        "RecurrentGemmaRecurrentBlock",
    ),
    "rwkv": (
        family(
            "rwkv",
            omits=("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
            context_length=CONTEXT,
            attention_hidden_size=32,
        ),
        "in a form of its own",
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
        "doesn't run on this engine's batches",
    ),
}
