"""Headers of GGUF files: what they say, and that no file can make their reader raise, hang or fill memory."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.gguf_file import TYPES
from instance_manager.gguf.errors import GgufError
from instance_manager.gguf.header import GgufHeader, read_chat_template, read_header
from instance_manager.gguf.headers import header_at
from instance_manager.gguf.reading import Skipped
from instance_manager.gguf.types import TENSOR_TYPES
from tests.engine.quantised.gguf_writer import Typed, gguf, text
from tests.gguf_files import TEMPLATE, metadata, of_type, tiny, vocabulary, weight


def header(content: bytes, folder: Path, *, whole: bool = True) -> GgufHeader:
    path = folder / "m.gguf"
    path.write_bytes(content)
    return read_header(path, whole=whole)


def test_a_header_says_what_its_model_is(tmp_path: Path) -> None:
    found = header(tiny("qwen3moe", expert_count=8, pooling_type=Typed(4, 3)), tmp_path)
    assert (found.architecture, found.kind, found.file_type) == ("qwen3moe", "model", "Q4_K_M")
    assert (found.text("general.name"), found.text("general.size_label")) == ("Tiny", "1M")
    assert [found.number(key) for key in ("context_length", "expert_count", "nothing")] == [4096, 8, None]
    assert (found.vocabulary_size, found.has_chat_template, found.pooling) == (4, True, "last")
    assert found.tensors is not None
    assert (found.tensors.num_values, found.tensors.num_bytes) == (256, 1024)
    assert found.tensors.types == {"F32": 1024}


def test_the_beginning_is_enough_for_the_models_own_keys(tmp_path: Path) -> None:
    keys = metadata()
    keys["tokenizer.ggml.tokens"] = [f"token{number}" for number in range(20_000)]
    content = gguf(keys, {"token_embd.weight": weight()})
    beginning = header(content, tmp_path, whole=False)
    assert (beginning.architecture, beginning.number("block_count")) == ("llama", 4)
    assert (beginning.vocabulary_size, beginning.has_chat_template) == (20_000, False)
    assert (beginning.tensors, beginning.num_tensors) == (None, 1)
    whole = header(content, tmp_path)
    assert (whole.vocabulary_size, whole.has_chat_template, whole.file_type) == (20_000, True, "Q4_K_M")


def test_a_long_beginning_is_cut_off_without_an_error(tmp_path: Path) -> None:
    keys = {"general.architecture": "llama", "general.name": "x" * 60_000, "llama.block_count": 4}
    found = header(gguf(keys, {}), tmp_path, whole=False)
    assert (found.architecture, found.number("block_count")) == ("llama", None)


def test_the_chat_template_is_read_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    long = TEMPLATE * 3000
    for template in (TEMPLATE, long, None):
        keys = metadata()
        keys["tokenizer.chat_template"] = template
        path.write_bytes(gguf({key: value for key, value in keys.items() if value is not None}, {}))
        assert read_chat_template(path) == template
        assert read_header(path).has_chat_template is (template is not None)


def test_values_that_differ_by_layer_are_kept_and_vocabularies_are_not(tmp_path: Path) -> None:
    per_layer: dict[str, Any] = {
        "attention.head_count_kv": [4, 0, 4],
        "attention.sliding_window_pattern": [True, False, True],
    }
    keys = metadata(**per_layer)
    keys["tokenizer.ggml.scores"] = [0.0] * 5000
    keys["nested"] = Typed(9, [Typed(9, [1, 2]), Typed(9, [3])])
    found = header(gguf(keys, {}), tmp_path)
    assert found.numbers("attention.head_count_kv") == [4, 0, 4]
    assert found.numbers("attention.sliding_window_pattern") == [1, 0, 1]
    assert isinstance(found.values["tokenizer.ggml.scores"], Skipped)
    assert isinstance(found.values["nested"], Skipped)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (tiny(), "model"),
        (of_type("adapter"), "adapter"),
        (of_type("imatrix"), "imatrix"),
        (vocabulary(), "vocabulary"),
        (gguf({"general.architecture": "clip"}, {"v": weight()}), "mmproj"),
        (gguf({**metadata(), "split.count": Typed(2, 3)}, {}), "model"),  # whose tensors are in other parts
        (gguf({"general.type": 7, "general.architecture": 3}, {"a": weight()}), "model"),
    ],
)
def test_what_is_not_a_model_says_so(content: bytes, kind: str, tmp_path: Path) -> None:
    assert header(content, tmp_path).kind == kind


def counts(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


def value(kind: int, body: bytes) -> bytes:
    return counts(0, 1) + text("k") + struct.pack("<I", kind) + body


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + body


HOSTILE = {
    "empty": b"",
    "short": b"GG",
    "not-gguf": b"PK\3\4" + bytes(100),
    "version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "many-tensors": counts(1 << 60, 0),
    "many-keys": counts(0, 1 << 60),
    "keys-that-are-not-there": counts(0, 5000),
    "long-key": counts(0, 1) + struct.pack("<Q", 1 << 62),
    "key-beyond-limits": counts(0, 1) + text("k" * 70_000) + struct.pack("<IB", 0, 1),
    "long-text": value(8, struct.pack("<Q", 1 << 62)),
    "unknown-type": value(77, bytes(8)),
    "array-of-unknown-type": value(9, array(77, 3)),
    "long-array": value(9, array(0, 1 << 62)),
    "long-array-of-texts": value(9, array(8, 1 << 62)),
    "array-of-texts-cut-off": value(9, array(8, 1000, text("a") * 10)),
    "text-that-leads-out": value(9, array(8, 2, struct.pack("<Q", (1 << 64) - 9) + bytes(100))),
    "deep": value(9, b"".join(array(9, 1) for _ in range(1000)) + array(0, 0)),
    "wide-and-deep": value(9, array(9, 1000, array(9, 1000, array(9, 1000) * 1000))),
    "no-dimensions": counts(1, 0) + text("t") + struct.pack("<I", 0),
    "many-dimensions": counts(1, 0) + text("t") + struct.pack("<I", 1 << 31),
    "tensor-cut-off": counts(1, 0) + text("t") + struct.pack("<IQ", 2, 8),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_an_error_with_a_reason(name: str, whole: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[name])
    began = time.perf_counter()
    tracemalloc.start()
    try:
        found = header_at(path, whole=whole)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if whole or name not in (
        "no-dimensions",
        "many-dimensions",
        "tensor-cut-off",
    ):  # which come after the keys
        assert isinstance(found, GgufError), found
        assert str(path.parent) not in str(found)
    assert peak < 8 << 20
    assert time.perf_counter() - began < 5


def test_a_file_that_is_cut_off_anywhere_never_raises_anything_else(tmp_path: Path) -> None:
    content, path = tiny(), tmp_path / "m.gguf"
    ends = len(gguf(metadata(), {})) - 32
    for length in range(0, ends, 7):
        path.write_bytes(content[:length])
        with pytest.raises(GgufError):
            read_header(path)


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    content, path, chance = tiny(), tmp_path / "m.gguf", random.Random(7)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 2, 8))):
            damaged[chance.randrange(len(damaged) // 2)] = chance.choice((0, 1, 9, 127, 255))
        path.write_bytes(damaged)
        try:
            found = read_header(path)
        except GgufError:
            continue
        _use(found)


def _use(found: GgufHeader) -> list[Any]:
    """Everything that a header can be asked."""
    return [
        found.kind, found.architecture, found.file_type, found.vocabulary_size, found.has_chat_template,
        found.pooling, found.number("block_count"), found.numbers("attention.head_count_kv"),
    ]  # fmt: skip


def test_many_values_are_not_kept(tmp_path: Path) -> None:
    """A hostile file could make gigabytes of Python numbers of tens of megabytes."""
    body = b"".join(text(f"k{n}") + struct.pack("<I", 9) + array(4, 4096, bytes(16384)) for n in range(300))
    path = tmp_path / "m.gguf"
    path.write_bytes(counts(0, 300) + body)
    with pytest.raises(GgufError, match="too many"):
        read_header(path)


@pytest.mark.timeout(10)
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("fifo.gguf", "folder.gguf", "nothing.gguf", "x\0.gguf"):
        assert isinstance(header_at(tmp_path / name), GgufError)


def test_a_header_is_read_again_only_if_its_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = tmp_path / "m.gguf", []
    original = read_header

    def counted(path: Path, *, whole: bool) -> GgufHeader:
        reads.append(path)
        return original(path, whole=whole)

    monkeypatch.setattr("instance_manager.gguf.headers.read_header", counted)
    path.write_bytes(tiny())
    first = header_at(path)
    assert header_at(path) is first
    path.write_bytes(tiny("qwen3") + bytes(64))
    second = header_at(path)
    assert isinstance(second, GgufHeader) and second.architecture == "qwen3"
    assert len(reads) == 2


def test_tensor_types_are_those_of_the_engine_and_more() -> None:
    assert {kind: TENSOR_TYPES[kind] for kind in TYPES} == TYPES
