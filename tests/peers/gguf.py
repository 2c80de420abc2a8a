"""Our demo model as a GGUF file, the format of llama.cpp, so that its server is tested with real weights.

GGUF 3: a head, the metadata as typed key-value pairs, the list of tensors, and their data, each aligned.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_ALIGNMENT = 32
_FLOAT32_TENSOR = 0
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NORMAL_TOKEN, _CONTROL_TOKEN, _USER_TOKEN, _UNUSED_TOKEN = 1, 3, 4, 5

_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Path, target: Path) -> None:
    """Write the Qwen3 checkpoint in the folder `model` to the file `target`, in float32."""
    config = json.loads((model / "config.json").read_text())
    metadata = _architecture(config) + _tokenizer(model, config)
    tensors = {
        _tensor_name(name): value.float() for name, value in load_file(model / "model.safetensors").items()
    }
    with target.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, kind, value in metadata:
            file.write(_text(key) + struct.pack("<I", kind) + _value(kind, value))
        offset = 0
        for name, tensor in tensors.items():
            shape = tensor.shape[::-1]  # the fastest-running dimension first
            file.write(_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", _FLOAT32_TENSOR, offset))
            offset += _padded(tensor.nbytes)
        file.write(b"\0" * (_padded(file.tell()) - file.tell()))
        for tensor in tensors.values():
            file.write(_bytes_of(tensor).ljust(_padded(tensor.nbytes), b"\0"))


def _architecture(config: dict[str, Any]) -> list[tuple[str, int, Any]]:
    numbers = {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.value_length": "head_dim",
    }
    return [
        ("general.architecture", _STRING, "qwen3"),
        ("general.name", _STRING, "berth-demo"),
        *((f"qwen3.{key}", _UINT32, config[field]) for key, field in numbers.items()),
        ("qwen3.rope.freq_base", _FLOAT32, config["rope_theta"]),
        ("qwen3.attention.layer_norm_rms_epsilon", _FLOAT32, config["rms_norm_eps"]),
    ]


def _tokenizer(model: Path, config: dict[str, Any]) -> list[tuple[str, int, Any]]:
    """llama.cpp has no splitting rule quite like ours; `gpt-2` is the same on lower-case prose."""
    described = json.loads((model / "tokenizer.json").read_text())
    tokens = [f"[unused{index}]" for index in range(config["vocab_size"])]
    kinds = [_UNUSED_TOKEN] * len(tokens)
    for text, index in described["model"]["vocab"].items():
        tokens[index], kinds[index] = text, _NORMAL_TOKEN
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL_TOKEN if added["special"] else _USER_TOKEN
    return [
        ("tokenizer.ggml.model", _STRING, "gpt2"),
        ("tokenizer.ggml.pre", _STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", _ARRAY, (_STRING, tokens)),
        ("tokenizer.ggml.token_type", _ARRAY, (_INT32, kinds)),
        (
            "tokenizer.ggml.merges",
            _ARRAY,
            (_STRING, [" ".join(pair) for pair in described["model"]["merges"]]),
        ),
        ("tokenizer.ggml.eos_token_id", _UINT32, config["eos_token_id"]),
        ("tokenizer.ggml.padding_token_id", _UINT32, config["pad_token_id"]),
        ("tokenizer.ggml.add_bos_token", _BOOL, False),
        ("tokenizer.chat_template", _STRING, (model / "chat_template.jinja").read_text()),
    ]


def _tensor_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight` there; the head is the embedding's."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    layer, inner = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{_LAYER_TENSORS[inner]}.weight"


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    if kind == _ARRAY:
        item_kind, items = value
        return struct.pack("<IQ", item_kind, len(items)) + b"".join(_value(item_kind, one) for one in items)
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}[kind], value)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().numpy().tobytes())


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
