"""What tiny checkpoints of families are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCAB_SIZE = 128
CONTEXT = 128

SHAPE: Mapping[str, Any] = {
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
SHARED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checkpoint's configuration: `options`, and what most families have in common but for `omits`."""

    model_type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    omits: tuple[str, ...] = ()  # of SHAPE


def family(model_type: str, *, omits: tuple[str, ...] = (), **options: Any) -> Recipe:
    return Recipe(model_type=model_type, options=options, omits=omits)


MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
MLA: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
HEADS = ("num_key_value_heads",)


def configuration(recipe: Recipe) -> dict[str, Any]:
    return {**{key: value for key, value in SHAPE.items() if key not in recipe.omits}, **recipe.options}
