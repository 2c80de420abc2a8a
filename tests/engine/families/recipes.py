"""Tiny random checkpoints, at least one of each family of decoders, which transformers builds and saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.engine.families.newer_recipes import NEWER
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
    configuration,
    family,
)
from tests.engine.families.refused_recipes import REFUSED_RECIPES
from tests.engine.families.state_recipes import STATES

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

RECIPES: Mapping[str, Recipe] = {
    "llama": family("llama"),
    "qwen2": family("qwen2"),
    "qwen3": family("qwen3", head_dim=16),
    "arcee": family("arcee"),
    "apertus": family("apertus"),
    "bitnet": family("bitnet"),
    "cohere": family("cohere"),
    "dots1": family("dots1", **ROUTED, n_shared_experts=1, first_k_dense_replace=1),
    "ernie4_5": family("ernie4_5", head_dim=16),
    "gemma": family("gemma", head_dim=16),
    "glm": family("glm", head_dim=8),
    "glm4": family("glm4", head_dim=8),
    "gpt2": family(
        "gpt2",
        omits=tuple(k for k in SHAPE if k not in SHARED),
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=CONTEXT,
    ),
    "gpt_neox": family("gpt_neox", omits=HEADS),
    "gpt_bigcode": family(
        "gpt_bigcode",
        omits=tuple(k for k in SHAPE if k not in SHARED),
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
    "granitemoe": family("granitemoe", **LOCAL),
    "granitemoeshared": family("granitemoeshared", **LOCAL, shared_intermediate_size=16),
    "helium": family("helium", head_dim=8),
    "hunyuan_v1_dense": family("hunyuan_v1_dense", head_dim=8),
    "hunyuan_v1_moe": family("hunyuan_v1_moe", head_dim=8, num_experts=4, moe_topk=2),
    "jais2": family("jais2"),
    "jetmoe": family("jetmoe", omits=("num_attention_heads",), **LOCAL, kv_channels=8),
    "ministral3": family("ministral3", head_dim=8),
    "mistral": family("mistral", sliding_window=None),
    "mixtral": family("mixtral", **LOCAL),
    "nanochat": family("nanochat"),
    "nemotron": family("nemotron"),
    "olmo": family("olmo"),
    "olmo2": family("olmo2"),
    "olmoe": family("olmoe", num_experts=4, num_experts_per_tok=2),
    "opt": family("opt", omits=("intermediate_size", *HEADS), ffn_dim=48, word_embed_proj_dim=32),
    "persimmon": family("persimmon", omits=HEADS),
    "phi": family("phi"),
    "phi3": family("phi3", sliding_window=None),
    "phimoe": family("phimoe", **LOCAL),
    "qwen2_moe": family("qwen2_moe", **MOE, shared_expert_intermediate_size=16),
    "qwen3_moe": family("qwen3_moe", **MOE, head_dim=16),
    "seed_oss": family("seed_oss", head_dim=8),
    "smollm3": family("smollm3"),
    "starcoder2": family("starcoder2", sliding_window=None),
    "deepseek_v2": family("deepseek_v2", **ROUTED, **MLA, head_dim=4, first_k_dense_replace=1),
    "deepseek_v3": family("deepseek_v3", **ROUTED, **MLA, head_dim=4, first_k_dense_replace=1),
    "glm4_moe": family("glm4_moe", head_dim=8, **ROUTED, first_k_dense_replace=1),
    "ernie4_5_moe": family(
        "ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_start_index=1
    ),
    "flex_olmo": family("flex_olmo", num_experts=4, num_experts_per_tok=2),
    "granitemoehybrid": family(
        "granitemoehybrid",
        layer_types=["attention"] * 3,
        mamba_n_heads=4,
        **LOCAL,
        shared_intermediate_size=16,
    ),
    "minimax_m2": family("minimax_m2", head_dim=8, **LOCAL),
    "solar_open": family("solar_open", head_dim=8, **ROUTED),
    "youtu": family("youtu", **MLA, pad_token_id=None),  # plain transformers sets the padding's row to 0
    "glm4_moe_lite": family("glm4_moe_lite", **ROUTED, **MLA),
    "hyperclovax": family("hyperclovax"),
    "laguna": family("laguna", head_dim=8, **MOE),
    "hy_v3": family("hy_v3", head_dim=8, **MOE),
    "ministral": family("ministral", head_dim=8, sliding_window=8),
    "mistral-window": family("mistral", sliding_window=8),
    "olmo3": family("olmo3", sliding_window=8),
    "cohere2": family("cohere2", sliding_window=8),
    "exaone4": family("exaone4", sliding_window=8),
    "gemma2": family("gemma2", head_dim=16, sliding_window=8),
    "gemma3_text": family("gemma3_text", head_dim=16, sliding_window=8),
    "gpt_oss": family("gpt_oss", head_dim=8, sliding_window=8, **LOCAL),
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
    "exaone_moe": family("exaone_moe", head_dim=8, **MOE, sliding_window=8, n_group=1, topk_group=1),
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
        **MLA,
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
    **NEWER,
    **STATES,
}

REFUSED: Mapping[str, str] = {name: words for name, (_, words) in REFUSED_RECIPES.items()}
"""What the refusal of a family says."""


def recipe_of(name: str) -> Recipe:
    return REFUSED_RECIPES[name][0] if name in REFUSED_RECIPES else RECIPES[name]


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
