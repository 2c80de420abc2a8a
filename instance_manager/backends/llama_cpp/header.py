"""The scalars in a GGUF file's header, and the lengths of its arrays. Reads no more than the header's start.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_KEYS = 4096
_MAX_TEXT_BYTES = 1 << 20
_MAX_KEPT = 1024  # elements of an array of numbers: one for each layer
_STOPS_AT = "tokenizer.ggml.tokens"  # hundreds of thousands of texts; what follows isn't needed


def read_header(path: Path) -> Mapping[str, Any]:
    """By key; of a text array `KEY.length` alone. Empty if it isn't such a file. Blocks for a moment."""
    try:
        found = path.stat()
    except OSError:
        return {}
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=512)
def _read(path: Path, modified_ns: int, size: int) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            return _metadata(file)
    except (OSError, ValueError, struct.error):
        return {}


def _metadata(file: BinaryIO) -> Mapping[str, Any]:
    """Raises ValueError and struct.error for what isn't GGUF."""
    if file.read(4) != _MAGIC:
        raise ValueError("no GGUF file")
    _version, _tensors, num_keys = struct.unpack("<IQQ", file.read(20))
    if num_keys > _MAX_KEYS:
        raise ValueError("too many keys")
    found: dict[str, Any] = {}
    for _ in range(num_keys):
        key = _text(file)
        (kind,) = struct.unpack("<I", file.read(4))
        if kind != _ARRAY:
            found[key] = _scalar(file, kind)
            continue
        item_kind, length = struct.unpack("<IQ", file.read(12))
        found[f"{key}.length"] = length
        if key == _STOPS_AT:
            break
        values = _items(file, item_kind, length)
        if values is not None:
            found[key] = values
    return found


def _scalar(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    code = _SCALARS.get(kind)
    if code is None:
        raise ValueError("unknown type")
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]


def _items(file: BinaryIO, kind: int, length: int) -> tuple[Any, ...] | None:
    """A short array of numbers; another one is passed over."""
    if kind in _SCALARS and length > _MAX_KEPT:
        file.seek(length * struct.calcsize(f"<{_SCALARS[kind]}"), 1)
        return None
    items = tuple(_scalar(file, kind) for _ in range(length))
    return None if kind == _STRING else items


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MAX_TEXT_BYTES:  # a template; or, in what isn't GGUF, a number that leads out of the file
        file.seek(length, 1)
        return ""
    return file.read(length).decode(errors="replace")
