"""Safetensors that nobody wrote by accident: one sentence, no crash, no memory for what they claim."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from engine.checkpoint.layout import check_whole
from engine.errors import CheckpointError, UnsupportedModel
from engine.models.weights import Checkpoint


def file_of(header: str, data: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = header.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(name: str, shape: str, start: object, stop: object) -> str:
    return f'"{name}": {{"dtype": "F32", "shape": {shape}, "data_offsets": [{start}, {stop}]}}'


CONTENTS = {
    "empty": b"",
    "no header": struct.pack("<Q", 0),
    "header longer than the file": file_of("{}", length=1 << 20),
    "header of exabytes": file_of("{}", length=1 << 60),
    "header nested too deep": file_of("[" * 100_000),
    "no JSON": file_of("{nonsense"),
    "a list": file_of("[1, 2]"),
    "tensors overlap": file_of(f"{{{tensor('a', '[2]', 0, 8)}, {tensor('b', '[3]', 4, 16)}}}"),
    "a hole": file_of(f"{{{tensor('a', '[1]', 0, 4)}, {tensor('b', '[2]', 8, 16)}}}"),
    "backwards": file_of(f"{{{tensor('a', '[2]', 16, 8)}}}"),
    "size lies": file_of(f"{{{tensor('a', '[4000]', 0, 16)}}}"),
    "sizes overflow": file_of(f"{{{tensor('a', f'[{1 << 62}, {1 << 62}]', 0, 16)}}}"),
    "negative dimension": file_of(f"{{{tensor('a', '[-4]', 0, 16)}}}"),
    "negative offset": file_of(f"{{{tensor('a', '[4]', -16, 0)}}}"),
    "infinite offset": file_of(f"{{{tensor('a', '[4]', 0, 'Infinity')}}}"),
    "enormous offset": file_of(f"{{{tensor('a', '[4]', 0, '9' * 400)}}}"),
    "beyond the end": file_of(f"{{{tensor('a', f'[{1 << 40}]', 0, 1 << 42)}}}"),
    "a name twice": file_of(f"{{{tensor('a', '[2]', 0, 8)}, {tensor('a', '[2]', 8, 16)}}}"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_it_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENTS[kind])
    with pytest.raises((CheckpointError, UnsupportedModel)) as caught:
        check_whole(path)
        Checkpoint(tmp_path)
    assert "\n" not in caught.value.message
    assert str(tmp_path) in caught.value.message
