"""Writes GGUF files, valid ones and others, by the format's definition."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALIGNMENT = 32


@dataclass(frozen=True)
class Typed:
    """A value with its type's number, for those that Python's own type doesn't determine."""

    kind: int
    value: Any


CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value: Any) -> Typed:
    if isinstance(value, Typed):
        return value
    kinds = {bool: 7, int: 4, float: 6, str: 8, list: 9}
    return Typed(kinds[type(value)], value)


def body(value: Typed) -> bytes:
    if value.kind == 8:
        return text(value.value)
    if value.kind == 9:
        items = [typed(item) for item in value.value]
        kind = items[0].kind if items else 4
        return struct.pack("<IQ", kind, len(items)) + b"".join(body(item) for item in items)
    return struct.pack(f"<{CODES[value.kind]}", value.value)


def key_value(key: str, value: Any) -> bytes:
    return text(key) + struct.pack("<I", typed(value).kind) + body(typed(value))


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    kind: int
    data: bytes


def f32(shape: tuple[int, ...], values: list[float]) -> Tensor:
    return Tensor(shape, 0, struct.pack(f"<{len(values)}f", *values))


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % ALIGNMENT)


def gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], *, version: int = 3) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    header += b"".join(key_value(key, value) for key, value in metadata.items())
    data = bytearray()
    for name, tensor in tensors.items():
        sizes = tuple(reversed(tensor.shape))
        header += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, tensor.kind, len(data))
        data += padded(tensor.data)
    return padded(header) + data


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    path.write_bytes(gguf(metadata, tensors))
    return path
