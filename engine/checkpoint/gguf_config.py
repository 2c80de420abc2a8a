"""What a GGUF file tells about its model: config.json's content, and Hugging Face's names of its tensors.

llama.cpp writes a model's numbers as metadata under names of its own, and changes some tensors: it permutes
the rows of Llama's queries and keys, and adds one to Gemma's norms. Knows nothing of torch.
"""

from __future__ import annotations

from typing import Any

from engine.checkpoint.gguf_architecture import Architecture
from engine.checkpoint.gguf_decoders import DECODERS
from engine.checkpoint.gguf_encoders import ENCODERS
from engine.checkpoint.gguf_fields import Config, Fields
from engine.checkpoint.gguf_file import GGUFFile
from engine.checkpoint.gguf_rope import rope_scaling_of
from engine.checkpoint.raw_config import MAX_LAYERS, check_most
from engine.errors import UnsupportedModel

ARCHITECTURES = {name: {**DECODERS, **ENCODERS}[name] for name in sorted({*DECODERS, *ENCODERS})}


def architecture_of(file: GGUFFile) -> Architecture:
    """Raises UnsupportedModel, CheckpointError."""
    fields = Fields(file)
    name = fields.text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.path} has a model of architecture {name!r}; of GGUF files, the engine runs "
            f"{', '.join(ARCHITECTURES)}: llama.cpp may run it (`engine: llama`).",
            advice=None,
        )
    return ARCHITECTURES[name].of(fields)


def config_of(file: GGUFFile) -> Config:
    """A config.json equivalent. Raises UnsupportedModel, CheckpointError."""
    fields, architecture = Fields(file), architecture_of(file)
    num_heads, hidden_size = fields.integer("attention.head_count"), fields.integer("embedding_length")
    num_layers = fields.integer("block_count")
    check_most(file.path, "block_count", num_layers, MAX_LAYERS)
    config: Config = {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "hidden_size": hidden_size,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "max_position_embeddings": fields.integer("context_length"),
        "vocab_size": fields.rows("token_embd.weight"),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
        "torch_dtype": _dtype(file, architecture),
        **_eps(fields, architecture),
        **_special_tokens(file),
    }
    if not architecture.is_encoder:
        config |= _of_decoder(fields, config)
    return config | architecture.further(fields, config)


def _of_decoder(fields: Fields, config: Config) -> Config:
    tensors, num_heads = fields.file.tensors, config["num_attention_heads"]
    head_dim = fields.integer("attention.key_length", max(1, config["hidden_size"] // num_heads))
    num_rotated = fields.integer("rope.dimension_count", head_dim)
    check_most(fields.file.path, "rope.dimension_count", num_rotated, head_dim)
    return {
        "num_key_value_heads": fields.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "rope_scaling": rope_scaling_of(fields),
        "partial_rotary_factor": num_rotated / head_dim,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": any(name.endswith(".attn_q.bias") for name in tensors),
        "mlp_bias": any(name.endswith(".ffn_down.bias") for name in tensors),
    }


def _eps(fields: Fields, architecture: Architecture) -> Config:
    if not architecture.eps:
        return {}
    key = "layer_norm_rms_epsilon" if architecture.eps == "rms_norm_eps" else "layer_norm_epsilon"
    return {architecture.eps: fields.number(f"attention.{key}")}


def _special_tokens(file: GGUFFile) -> dict[str, Any]:
    names = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    return {f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names}


def _dtype(file: GGUFFile, architecture: Architecture) -> str:
    """Of files whose matrices are neither quantised nor in bfloat16, their own; else bfloat16.

    Encoders are small: those that aren't in float32 are computed in float16, or better.
    """
    kinds = {tensor.type_name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    own = {frozenset({"F32"}): "float32", frozenset({"F16"}): "float16"}.get(frozenset(kinds))
    return own or ("float16" if architecture.is_encoder else "bfloat16")
