"""The header of a GGUF file: metadata, and which tensor lies where. Reads no tensors; knows nothing of torch.

Every length and offset is checked against the file before anything of that size is read or made.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_ENTRIES = 1 << 16  # keys, and tensors
_MAX_ELEMENTS = 1 << 22  # of all arrays together: the largest vocabularies have 1.5 million with their merges
_MAX_NESTING = 4
_MAX_DIMENSIONS = 4
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# Tensor types: number → name, values in a block, bytes of a block
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
}
_OTHER_TYPES = {
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    shape: tuple[int, ...]  # the last dimension is the contiguous one
    type_name: str
    block_size: int  # values; a divisor of the last dimension
    block_bytes: int
    start: int  # in the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GGUFFile:
    path: Path
    metadata: Mapping[str, Any]  # arrays of numbers as array.array, others as lists
    tensors: Mapping[str, StoredTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Raises CheckpointError, naming what is wrong with the file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, data)
    except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
        raise CheckpointError(f"{path} can't be read: {error}.") from error


def split_files(path: Path) -> list[Path]:
    """All files of a model, given any of them: `name-00001-of-00003.gguf` has two more.

    Raises CheckpointError if some are missing.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    if count > _MAX_ENTRIES:
        raise CheckpointError(f"{path}: its name tells of {count} files.")
    paths = [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, count + 1)]
    if absent := [other.name for other in paths if not other.is_file()]:
        raise CheckpointError(f"{path.parent} lacks {absent[0]}, which the name of {path.name} tells of.")
    return paths


class _Reader:
    """Reads values one after the other, never beyond the file's end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._elements_left = _MAX_ELEMENTS
        self.at = 0

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is not a valid GGUF file: {problem}.")

    def need(self, size: int, what: str) -> None:
        if size > len(self._data) - self.at:
            raise self.error(f"it ends within {what} (at byte {self.at} of {len(self._data)})")

    def scalar(self, code: str, what: str) -> Any:
        size = struct.calcsize(f"<{code}")
        self.need(size, what)
        (value,) = struct.unpack_from(f"<{code}", self._data, self.at)
        self.at += size
        return value

    def string(self, what: str) -> str:
        length = self.scalar("Q", what)
        self.need(length, what)
        raw = self._data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode(errors="replace")  # tokens of some vocabularies are no valid UTF-8

    def value(self, kind: int, what: str, nesting: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY and nesting < _MAX_NESTING:
            return self._array(what, nesting + 1)
        raise self.error(
            f"{what} has an unknown type ({kind})" if kind != _ARRAY else f"{what} is nested too deep"
        )

    def _array(self, what: str, nesting: int) -> Any:
        kind, count = self.scalar("I", what), self.scalar("Q", what)
        if count > self._elements_left:
            raise self.error(f"{what} has {count} elements; all arrays together may have {_MAX_ELEMENTS}")
        self._elements_left -= count
        code = _SCALARS.get(kind)
        if code is None or code == "?":
            return [self.value(kind, what, nesting) for _ in range(count)]
        size = struct.calcsize(f"<{code}") * count
        self.need(size, what)
        values = array(code)
        values.frombytes(self._data[self.at : self.at + size])
        self.at += size
        return values


def _read(path: Path, data: mmap.mmap) -> GGUFFile:
    reader = _Reader(path, data)
    reader.need(8, "its first 8 bytes")
    if data[:4] != _MAGIC:
        raise reader.error("it doesn't start with GGUF's mark")
    reader.at = 4
    version = reader.scalar("I", "its version")
    if version not in _VERSIONS:
        byte_order = " (it may be big-endian)" if version & 0xFFFF == 0 else ""
        raise reader.error(f"its version is {version}{byte_order}; 2 and 3 can be read")
    num_tensors, num_keys = reader.scalar("Q", "its counts"), reader.scalar("Q", "its counts")
    for count, what in ((num_tensors, "tensors"), (num_keys, "keys")):
        if count > _MAX_ENTRIES:
            raise reader.error(f"it claims to have {count} {what}, more than {_MAX_ENTRIES}")
    metadata = _metadata(reader, num_keys)
    entries = [_entry(reader) for _ in range(num_tensors)]
    return GGUFFile(path, metadata, _tensors(reader, entries, _alignment(reader, metadata), len(data)))


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = reader.string("a key")
        if key in metadata:
            raise reader.error(f"it has the key {key[:100]!r} twice")
        metadata[key] = reader.value(
            reader.scalar("I", f"the type of {key[:100]}"), f"the value of {key[:100]}"
        )
    return metadata


def _alignment(reader: _Reader, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise reader.error(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """A tensor's name, its sizes from the last dimension to the first, its type and its offset."""
    name = reader.string("a tensor's name")
    what = f"the description of tensor {name[:100]}"
    num_dimensions = reader.scalar("I", what)
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise reader.error(
            f"tensor {name[:100]} has {num_dimensions} dimensions instead of 1 to {_MAX_DIMENSIONS}"
        )
    sizes = tuple(int(reader.scalar("Q", what)) for _ in range(num_dimensions))
    return name, sizes, reader.scalar("I", what), reader.scalar("Q", what)


def _tensors(
    reader: _Reader, entries: list[tuple[str, tuple[int, ...], int, int]], alignment: int, file_size: int
) -> dict[str, StoredTensor]:
    data_start = -(-reader.at // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for name, sizes, kind, offset in entries:
        if name in tensors:
            raise reader.error(f"it has the tensor {name[:100]} twice")
        if kind not in TYPES:
            known = ", ".join(known_name for known_name, _, _ in TYPES.values())
            raise CheckpointError(
                f"{reader._path} can't be read: tensor {name[:100]} has type {_OTHER_TYPES.get(kind, kind)}; "
                f"the types that can be read are {known}."
            )
        type_name, block_size, block_bytes = TYPES[kind]
        if min(sizes) < 1 or sizes[0] % block_size:
            raise reader.error(
                f"tensor {name[:100]} has sizes {list(sizes)}, which don't fit blocks of {block_size} values "
                f"({type_name})"
            )
        num_bytes = math.prod(sizes) // block_size * block_bytes
        if offset % alignment:
            raise reader.error(f"tensor {name[:100]} begins at {offset}, which is no multiple of {alignment}")
        if data_start + offset + num_bytes > file_size:
            raise reader.error(
                f"tensor {name[:100]} ends at byte {data_start + offset + num_bytes}, but the file has "
                f"{file_size}: its download may not be finished"
            )
        tensors[name] = StoredTensor(
            tuple(reversed(sizes)), type_name, block_size, block_bytes, data_start + offset, num_bytes
        )
    _check_apart(reader, tensors)
    return tensors


def _check_apart(reader: _Reader, tensors: Mapping[str, StoredTensor]) -> None:
    in_order = sorted(tensors.items(), key=lambda item: item[1].start)
    for (name, tensor), (other, following) in pairwise(in_order):
        if tensor.start + tensor.num_bytes > following.start:
            raise reader.error(f"tensors {name[:100]} and {other[:100]} overlap")
