"""The header of GGUF files: every type of value, and every way in which a file may be wrong."""

from __future__ import annotations

import random
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.gguf_file import read_gguf, split_files
from engine.errors import CheckpointError
from tests.engine.quantised.gguf_writer import Tensor, Typed, f32, gguf, key_value, text, write

METADATA = {
    "general.architecture": "qwen3",
    "qwen3.block_count": 2,
    "tokens": ["a", "b"],
    "scores": [0.5, 1.0],
}
TENSORS = {"a.weight": f32((2, 3), [1.0, 2, 3, 4, 5, 6]), "b.weight": Tensor((1, 32), 8, bytes(34))}


def test_every_type_of_metadata_is_read(tmp_path: Path) -> None:
    values: dict[str, tuple[Any, Any]] = {
        "uint8": (Typed(0, 200), 200),
        "int8": (Typed(1, -100), -100),
        "uint16": (Typed(2, 60_000), 60_000),
        "int16": (Typed(3, -30_000), -30_000),
        "uint32": (Typed(4, 4_000_000_000), 4_000_000_000),
        "int32": (Typed(5, -2_000_000_000), -2_000_000_000),
        "float32": (Typed(6, 0.5), 0.5),
        "bool": (Typed(7, True), True),
        "string": (Typed(8, "é▁"), "é▁"),
        "uint64": (Typed(10, 1 << 63), 1 << 63),
        "int64": (Typed(11, -(1 << 62)), -(1 << 62)),
        "float64": (Typed(12, 0.1), 0.1),
        "strings": (["a", ""], ["a", ""]),
        "numbers": ([Typed(1, -1), Typed(1, 2)], [-1, 2]),
        "flags": ([True, False], [True, False]),
        "nothing": ([], []),
        "nested": ([["a"], ["b", "c"]], [["a"], ["b", "c"]]),
    }
    path = write(tmp_path / "m.gguf", {key: written for key, (written, _) in values.items()}, {})
    metadata = read_gguf(path).metadata
    for key, (_, expected) in values.items():
        found = metadata[key]
        assert (
            found if isinstance(found, str) or not hasattr(found, "__len__") else list(found)
        ) == expected, key


def test_tensors_are_where_the_header_says(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", METADATA, TENSORS)
    tensors = read_gguf(path).tensors
    first, second = tensors["a.weight"], tensors["b.weight"]
    assert (first.shape, first.type_name, first.num_bytes) == ((2, 3), "F32", 24)
    assert (second.shape, second.type_name, second.num_bytes) == ((1, 32), "Q8_0", 34)
    assert path.read_bytes()[first.start : first.start + 24] == TENSORS["a.weight"].data
    assert second.start == first.start + 32


def test_an_alignment_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {"general.alignment": 8, "k": 1}, {"a": f32((1,), [1.0])})
    assert read_gguf(path).tensors["a"].start % 8 == 0


@pytest.mark.parametrize("size", range(0, len(gguf(METADATA, TENSORS)) - 30, 3))
def test_a_truncated_file_is_named_as_such(size: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(METADATA, TENSORS)[:size])
    with pytest.raises(CheckpointError) as caught:
        read_gguf(path)
    assert str(path) in caught.value.message


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    chance, whole, path = random.Random(0), gguf(METADATA, TENSORS), tmp_path / "m.gguf"
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 127, 128, 255))
        path.write_bytes(damaged)
        with suppress(CheckpointError):
            read_gguf(path)


def header(num_tensors: int, num_keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + rest


def entry(name: str, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset) + bytes(64)


HUGE = 1 << 60
ARRAY = text("k") + struct.pack("<I", 9)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "can't be read"),
        (b"PK\x03\x04" + bytes(60), "it doesn't start with GGUF's mark"),
        (header(0, 0, version=1), "its version is 1; 2 and 3 can be read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "it may be big-endian"),
        (header(HUGE, 0), "claims to have 1152921504606846976 tensors"),
        (header(0, HUGE), "claims to have 1152921504606846976 keys"),
        (header(0, 1, struct.pack("<Q", HUGE)), "it ends within a key"),
        (header(0, 1, text("k") + struct.pack("<IQ", 8, HUGE)), "it ends within the value of k"),
        (header(0, 1, ARRAY + struct.pack("<IQ", 4, HUGE)), "k has 1152921504606846976 elements"),
        (header(0, 1, ARRAY + struct.pack("<IQ", 4, 1 << 21)), "it ends within the value of k"),
        (header(0, 1, ARRAY + struct.pack("<IQ", 8, 1 << 21)), "it ends within the value of k"),
        (header(0, 1, ARRAY + struct.pack("<IQ", 9, 1) * 9), "nested too deep"),
        (header(0, 1, text("k") + struct.pack("<I", 13)), "the value of k has an unknown type (13)"),
        (header(0, 2, key_value("k", 1) * 2), "the key 'k' twice"),
        (header(0, 1, key_value("general.alignment", 24)), "general.alignment is 24"),
        (header(0, 1, key_value("general.alignment", "32")), "general.alignment is '32'"),
        (header(1, 0, text("t") + struct.pack("<I", 0)), "tensor t has 0 dimensions"),
        (header(1, 0, text("t") + struct.pack("<I", 1 << 31)), "tensor t has 2147483648 dimensions"),
        (
            header(1, 0, entry("t", (4,), 23, 0)),
            "tensor t has type IQ4_XS; the types that can be read are F32",
        ),
        (header(1, 0, entry("t", (4,), 99, 0)), "tensor t has type 99"),
        (header(1, 0, entry("t", (0, 4), 0, 0)), "tensor t has sizes [0, 4]"),
        (
            header(1, 0, entry("t", (33, 4), 8, 0)),
            "tensor t has sizes [33, 4], which don't fit blocks of 32 values (Q8_0)",
        ),
        (header(1, 0, entry("t", (4,), 0, 4)), "tensor t begins at 4, which is no multiple of 32"),
        (header(1, 0, entry("t", (HUGE, HUGE), 0, 0)), "its download may not be finished"),
        (header(1, 0, entry("t", (4,), 0, HUGE)), "its download may not be finished"),
        (header(2, 0, entry("t", (4,), 0, 0)[:-64] * 2 + bytes(64)), "the tensor t twice"),
        (
            header(2, 0, entry("t", (12,), 0, 0)[:-64] + entry("u", (4,), 0, 32) + bytes(64)),
            "tensors t and u overlap",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_sentence_and_costs_no_memory(
    content: bytes, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert named in caught.value.message
    assert "\n" not in caught.value.message
    assert peak < 1 << 22


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"m\.gguf can't be read"):
        read_gguf(tmp_path / "m.gguf")


def test_the_other_files_of_a_split_model_are_found_from_any(tmp_path: Path) -> None:
    names = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in split_files(tmp_path / names[1])] == names
    (tmp_path / names[2]).unlink()
    with pytest.raises(CheckpointError, match=names[2]):
        split_files(tmp_path / names[0])
    assert split_files(tmp_path / "whole.gguf") == [tmp_path / "whole.gguf"]
