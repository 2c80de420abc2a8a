"""The header of one GGUF file: what it says of its model. Reads no tensors, and never an unbounded amount.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instance_manager.gguf.errors import GgufError
from instance_manager.gguf.reading import EndOfWindow, LongText, Reader, Skipped, opened
from instance_manager.gguf.types import FILE_TYPES, TENSOR_TYPES

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_ENTRIES = 1 << 16  # keys, and tensors
_MAX_DIMENSIONS = 4
_MAX_TEMPLATE_BYTES = 1 << 20
_WINDOW_BYTES = 32 << 10  # the model's own keys come first, the tokenizer's after them
_MAX_NUMBER = 1 << 40
_POOLING = ("none", "mean", "cls", "last", "rank")
_TEMPLATE = "tokenizer.chat_template"
_TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True)
class Tensors:
    """What a file's list of tensors adds up to."""

    num_values: int = 0
    num_bytes: int = 0  # of those with a known type
    types: Mapping[str, int] = field(default_factory=dict)  # bytes by type
    matrix_types: frozenset[str] = frozenset()  # of those with several dimensions
    has_head: bool = False  # besides the embedding


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Keys and their values, and the tensors where the whole header was read."""

    num_tensors: int
    values: Mapping[str, Any]  # numbers, texts, lists of numbers; others as LongText and Skipped
    tensors: Tensors | None = None  # None: only the beginning was read

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value.strip() or None if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Of the model: `context_length` stands for `llama.context_length`. Positive, else None."""
        value = self.values.get(f"{self.architecture}.{key}")
        if not isinstance(value, int) or isinstance(value, bool):
            return None
        return value if 0 < value < _MAX_NUMBER else None

    def numbers(self, key: str) -> list[int]:
        """A value for each layer; empty if there is none."""
        value = self.values.get(f"{self.architecture}.{key}")
        return [int(one) for one in value] if isinstance(value, list) and _are_whole(value) else []

    def largest(self, key: str) -> int | None:
        """`number`; where layers differ, the largest."""
        return self.number(key) or max(self.numbers(key), default=0) or None

    @property
    def generates(self) -> bool:
        """Whether it is a model that writes text, not one that embeds or ranks."""
        return (
            self.pooling in (None, "none")
            and self.values.get(f"{self.architecture}.attention.causal") is not False
        )

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or ""

    @property
    def kind(self) -> str:
        """model, adapter, imatrix, mmproj, vocabulary."""
        named = self.text("general.type") or "model"
        if named == "model" and self.architecture == "clip":
            return "mmproj"
        has_parts = (self.values.get("split.count") or 0) not in (0, 1)
        return "vocabulary" if named == "model" and not self.num_tensors and not has_parts else named

    @property
    def file_type(self) -> str | None:
        """The quantisation, as the file itself names it."""
        number = self.values.get("general.file_type")
        return FILE_TYPES.get(number) if isinstance(number, int) else None

    @property
    def vocabulary_size(self) -> int | None:
        tokens = self.values.get(_TOKENS)
        return tokens.length if isinstance(tokens, Skipped) else self.number("vocab_size")

    @property
    def pooling(self) -> str | None:
        """Of a model that embeds (mean, cls, last; none: each token's own) or ranks (rank)."""
        number = self.values.get(f"{self.architecture}.pooling_type")
        return _POOLING[number] if isinstance(number, int) and 0 <= number < len(_POOLING) else None

    @property
    def has_chat_template(self) -> bool:
        return isinstance(self.values.get(_TEMPLATE), str | LongText)


def total_of(parts: Iterable[Tensors]) -> Tensors:
    """Of all parts of a model."""
    parts = list(parts)
    types: Counter[str] = Counter()
    for part in parts:
        types.update(part.types)
    return Tensors(
        sum(part.num_values for part in parts),
        sum(part.num_bytes for part in parts),
        dict(types),
        frozenset().union(*(part.matrix_types for part in parts)),
        any(part.has_head for part in parts),
    )


def read_header(path: Path, *, whole: bool = True) -> GgufHeader:
    """Raises GgufError. `whole`: else only the first keys: microseconds, where a vocabulary takes 50 ms."""
    with opened(path) as descriptor:
        reader = Reader(descriptor, window=None if whole else _WINDOW_BYTES)
        num_tensors, num_keys = _counts(reader)
        values: dict[str, Any] = {}
        try:
            for _ in range(num_keys):
                _read_pair(reader, values)
            return GgufHeader(num_tensors, values, _tensors(reader, num_tensors) if whole else None)
        except EndOfWindow:
            return GgufHeader(num_tensors, values)


def read_chat_template(path: Path) -> str | None:
    """The text itself; None if there is none, or an absurdly long one. Raises GgufError."""
    found = read_header(path).values.get(_TEMPLATE)
    if not isinstance(found, LongText):
        return found if isinstance(found, str) else None
    if found.length > _MAX_TEMPLATE_BYTES:
        return None
    with opened(path) as descriptor:
        reader = Reader(descriptor)
        reader.at = found.start
        return reader.raw(found.length, "its chat template").decode(errors="replace")


def _counts(reader: Reader) -> tuple[int, int]:
    """Of tensors and keys."""
    magic = reader.raw(4, "its first bytes")
    if magic != _MAGIC:
        raise GgufError("isn't a GGUF file: it doesn't start with GGUF's mark")
    version = reader.scalar(4, "its version")
    if version not in _VERSIONS:
        order = " (it may be big-endian)" if version & 0xFFFF == 0 else ""
        raise GgufError(f"is in version {version} of the GGUF format{order}; 2 and 3 can be read")
    counts = reader.scalar(10, "its counts"), reader.scalar(10, "its counts")
    if max(counts) > _MAX_ENTRIES:
        raise GgufError(f"isn't a valid GGUF file: it claims to have {max(counts)} tensors or keys")
    return counts


def _read_pair(reader: Reader, values: dict[str, Any]) -> None:
    key = reader.text("a key")
    what = f"the value of {key[:100]!r}"
    try:
        values.setdefault(key, reader.value(reader.scalar(4, what), what))
    except EndOfWindow as end:
        if end.value is not None:
            values.setdefault(key, end.value)
        raise


def _tensors(reader: Reader, count: int) -> Tensors:
    num_values, has_head = 0, False
    types: Counter[str] = Counter()
    matrix_types: set[str] = set()
    for _ in range(count):
        tensor = reader.text("the name of a tensor")
        what = f"the entry of tensor {tensor[:100]!r}"
        num_dimensions = reader.scalar(4, what)
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise GgufError(f"isn't a valid GGUF file: {what} has {num_dimensions} dimensions")
        size = math.prod(reader.scalar(10, what) for _ in range(num_dimensions))
        name, block_values, block_bytes = TENSOR_TYPES.get(reader.scalar(4, what), ("", 1, 0))
        reader.scalar(10, what)  # where it lies
        num_values += size
        types[name] += size // block_values * block_bytes
        has_head = has_head or tensor == "output.weight"
        if num_dimensions > 1:
            matrix_types.add(name)
    return Tensors(num_values, sum(types.values()), dict(types), frozenset(matrix_types), has_head)


def _are_whole(values: list[Any]) -> bool:
    return all(isinstance(one, int) and 0 <= one < _MAX_NUMBER for one in values)
