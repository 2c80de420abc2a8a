"""Small GGUF files, as real ones are named and laid out: headers as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engine.quantised.gguf_writer import Tensor, Typed, f32, gguf

TOKENS = ["<s>", "</s>", "a", "b"]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def metadata(architecture: str = "llama", *, file_type: int = 15, **own: Any) -> dict[str, Any]:
    """Keys in the usual order: general, the model's, the tokenizer's, and what the quantiser adds."""
    numbers: dict[str, Any] = {
        "context_length": 4096,
        "embedding_length": 64,
        "block_count": 4,
        "feed_forward_length": 128,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        **own,
    }
    return {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": "Tiny",
        "general.size_label": "1M",
        **{f"{architecture}.{key}": value for key, value in numbers.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.scores": [0.0] * len(TOKENS),
        "tokenizer.chat_template": TEMPLATE,
        "general.quantization_version": 2,
        "general.file_type": file_type,
    }


def tiny(architecture: str = "llama", **own: Any) -> bytes:
    return gguf(metadata(architecture, **own), {"token_embd.weight": weight()})


def weight(rows: int = 4, columns: int = 64) -> Tensor:
    return f32((rows, columns), [0.0] * (rows * columns))


def of_type(kind: str) -> bytes:
    """Not a model's."""
    return gguf({"general.architecture": "llama", "general.type": kind}, {"a": weight()})


def vocabulary() -> bytes:
    return gguf(metadata(), {})


def put_gguf(folder: Path, *names: str, content: bytes | None = None) -> Path:
    """Files of one model each."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny() if content is None else content)
    return folder


def put_split(folder: Path, base: str, count: int, missing: tuple[int, ...] = ()) -> None:
    """All parts of one model, but the missing."""
    for number in set(range(1, count + 1)) - set(missing):
        own: Mapping[str, Any] = metadata() if number == 1 else {}
        keys = {**own, "split.no": Typed(2, number - 1), "split.count": Typed(2, count)}
        put_gguf(
            folder, f"{base}-{number:05}-of-{count:05}.gguf", content=gguf(keys, {f"t{number}": weight()})
        )
