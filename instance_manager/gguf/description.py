"""What a GGUF model's files say of it, as shown to clients. No paths: only names of files."""

from __future__ import annotations

from typing import Any

from instance_manager.gguf.header import GgufHeader
from instance_manager.gguf.headers import header_at
from instance_manager.gguf.models import GgufModel

_NUMBERS = (
    "context_length", "block_count", "embedding_length", "feed_forward_length", "expert_count",
    "expert_used_count", "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.sliding_window",
)  # fmt: skip
_MAX_CHARS = 200  # of a text


def describe(model: GgufModel, *, whole: bool = False) -> dict[str, Any] | None:
    """None if its header can't be read. Blocks: opens files.

    `whole`: with the values that lie after the vocabulary; else they are None, and it takes microseconds.
    """
    headers = [header_at(path, whole=whole) for path in (model.paths if whole else [model.path])]
    header, readable = headers[0], [one for one in headers if isinstance(one, GgufHeader)]
    if not isinstance(header, GgufHeader):
        return None
    return {
        "format": "gguf",
        "architecture": _short(header.architecture),
        "name": _short(header.text("general.name")),
        "size_label": _short(header.text("general.size_label")),
        "quantization": model.files.quantisation or header.file_type,
        "file_type": header.file_type,
        **{key.removeprefix("attention."): header.largest(key) for key in _NUMBERS},
        "vocabulary_size": header.vocabulary_size,
        "tokenizer": _short(header.text("tokenizer.ggml.model")),
        "chat_template": header.has_chat_template if whole else None,
        "pooling": header.pooling,
        "num_parameters": sum(one.tensors.num_values for one in readable if one.tensors) if whole else None,
        "tensor_bytes": sum(one.tensors.num_bytes for one in readable if one.tensors) if whole else None,
        "license": _short(header.text("general.license")),
        "files": [path.name for path in model.paths],
        "mmproj": None if model.projector is None else model.projector.name,
    }


def _short(text: str | None) -> str | None:
    return text[:_MAX_CHARS] or None if text else None
