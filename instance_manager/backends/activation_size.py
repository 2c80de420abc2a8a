"""The most that a step of the embedded engine takes on a CPU besides weights and KV cache. Pure.

The heap keeps the peak of all steps until the engine sleeps. On a GPU the engine measures this itself and
reserves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instance_manager.memory.kv_cache_size import decoder_config, dtype_bytes, generates, quantity

# The engine's defaults, as in engine/config.py.
_MAX_NUM_BATCHED_TOKENS = 2048
_MAX_NUM_SEQS = 64

_RESIDUALS = 4  # rows of the hidden size at once: residual, the term added to it, its norm, a copy
_GATED = 3  # rows of the MLP's size at once: gate and up fused, and their product
# On top of each sampled logit: a float32 copy, a sorted copy and the order. On top of each logit that scores
# a prompt, of which the engine holds a bounded number at a time: a float32 copy and a logprob.
_SAMPLING_BYTES = 4 + 4 + 8
_SCORING_BYTES = 4 + 4
_SCORED_LOGITS = 1 << 24
_MASK_BYTES = 1 + 4  # per position that a token may attend to in the longest context; only in float32
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes. `layers`: what any long prompt takes; `rest`: what only some steps take on top."""

    layers: int = 0
    rest: int = 0


def activations(params: Mapping[str, Any], config: Mapping[str, Any]) -> Activations:
    """Of a step of as many tokens as the flags allow; 0 where config.json lacks the sizes."""
    text = decoder_config(config)
    hidden, heads = quantity(text.get("hidden_size")), quantity(text.get("num_attention_heads"))
    if not (hidden and heads):
        return Activations()
    value_bytes = dtype_bytes(params.get("dtype", "auto"), text) or 2
    tokens = quantity(params.get("max_num_batched_tokens")) or _MAX_NUM_BATCHED_TOKENS
    kv_heads = quantity(text.get("num_key_value_heads")) or heads
    head_dim = quantity(text.get("head_dim")) or hidden // heads
    attention_row = (2 * heads + 2 * kv_heads) * head_dim  # projections, and attention outputs
    mlp_row = _GATED * (quantity(text.get("intermediate_size")) or 4 * hidden)
    layers_bytes = tokens * (_RESIDUALS * hidden + max(attention_row, mlp_row)) * value_bytes
    longest = quantity(params.get("max_model_len")) or quantity(text.get("max_position_embeddings")) or tokens
    rest_bytes = 2 * longest * kv_heads * head_dim * value_bytes  # of a sequence with scattered blocks
    if value_bytes == _FLOAT32_BYTES:
        rest_bytes += tokens * longest * _MASK_BYTES
    if generates(params, config):
        rest_bytes += _logits_bytes(params, quantity(text.get("vocab_size")) or 0, tokens, value_bytes)
    return Activations(layers_bytes, rest_bytes)


def _logits_bytes(params: Mapping[str, Any], vocab_size: int, tokens: int, value_bytes: int) -> int:
    """The larger of sampling and prompt scoring: the two never run at the same time."""
    num_seqs = min(quantity(params.get("max_num_seqs")) or _MAX_NUM_SEQS, tokens)
    sampled_bytes = num_seqs * vocab_size * (value_bytes + _SAMPLING_BYTES)
    scored_bytes = min(tokens * vocab_size, _SCORED_LOGITS) * (value_bytes + _SCORING_BYTES)
    return max(sampled_bytes, scored_bytes)
