"""How a GGUF file of one architecture becomes a checkpoint in Hugging Face's form: names and numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.checkpoint.gguf_fields import Config, Fields
from engine.checkpoint.gguf_rope import ROPE_TENSORS
from engine.errors import UnsupportedModel

AROUND = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LLAMA = {**NORMS, **ATTENTION, **MLP}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def nothing(fields: Fields, config: Config) -> Config:
    return {}


@dataclass(frozen=True, slots=True)
class Stack:
    """Experts that the model has in one tensor: [experts, out, in], of one or several tensors of the file."""

    interleaved: bool = (
        False  # rows of the first, the second, the first …; else one tensor's below the other's
    )
    transposed: bool = False  # [experts, in, out]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Names with a `{}` are those of each expert, whose number it stands for."""

    name: str  # Hugging Face's
    model_type: str
    layer_names: Mapping[str, str] = field(default_factory=lambda: LLAMA)
    further: Callable[[Fields, Config], Config] = nothing
    permuted: bool = False  # rows of queries and keys
    norms_plus_one: bool = False
    around: Mapping[str, str] = field(default_factory=lambda: AROUND)
    layers: str = "model.layers"
    eps: str = "rms_norm_eps"
    stacks: Mapping[str, Stack] = field(default_factory=dict)  # by the ends of names
    is_encoder: bool = False
    # Of a key, or a tensor, of the file: the architecture if there is one.
    variants: tuple[tuple[str, Architecture], ...] = ()

    def but(self, **changes: Any) -> Architecture:
        return replace(self, **changes)

    def of(self, fields: Fields) -> Architecture:
        return next((variant for key, variant in self.variants if fields.has(key)), self)

    def tensor_name(self, stored: str) -> str | None:
        """A tensor's name in the model; None for one that is part of the configuration.

        Raises UnsupportedModel for a tensor that the architecture doesn't have here.
        """
        if stored in ROPE_TENSORS:
            return None
        match = _LAYER.fullmatch(stored)
        known, inner = (self.around, stored) if match is None else (self.layer_names, match[2])
        prefix = "" if match is None else f"{self.layers}.{match[1]}."
        if inner in known:
            return f"{prefix}{known[inner]}"
        stem, _, kind = inner.rpartition(".")
        if kind in ("weight", "bias") and stem in known:
            return f"{prefix}{known[stem]}.{kind}"
        raise UnsupportedModel(
            f"The GGUF file has a tensor {stored!r}, which {self.name} doesn't have: llama.cpp may run it "
            "(`engine: llama`).",
            advice=None,
        )
