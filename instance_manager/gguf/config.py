"""A GGUF header in the words of config.json, for those who estimate memory by it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instance_manager.gguf.header import GgufHeader

_NAMES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
}
_PLAIN = {frozenset({"F32"}): "float32", frozenset({"F16"}): "float16"}


def config_of(header: GgufHeader) -> Mapping[str, Any]:
    """Sizes, whether the model generates, and the type that its weights are computed in."""
    numbers = {name: header.largest(key) for name, key in _NAMES.items()}
    numbers["vocab_size"] = header.vocabulary_size
    tensors = header.tensors
    return {
        "architectures": [f"{header.architecture}{'ForCausalLM' if header.generates else 'Model'}"],
        **{name: value for name, value in numbers.items() if value is not None},
        "dtype": _PLAIN.get(tensors.matrix_types if tensors else frozenset(), "bfloat16"),
        "tie_word_embeddings": tensors is not None and not tensors.has_head,
    }
