"""ggml's types, against dequantising by the definition of their blocks, one value at a time.

The definitions were compared with the results of llama.cpp's own package `gguf`; the tests need only these.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping

import pytest
import torch

from engine.checkpoint.gguf_file import TYPES
from engine.models.quantised.ggml import DEQUANTISE, PLAIN
from tests.engine.quantised.test_mxfp4 import e2m1

SIZES = {name: (values, size) for name, values, size in TYPES.values()}


def half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def nibble(packed: bytes, at: int) -> int:
    """Value `at` of a block of 32: the first half lies in lower halves of bytes."""
    return packed[at] & 0xF if at < 16 else packed[at - 16] >> 4


def fifth(packed: bytes, at: int) -> int:
    return (packed[at // 8] >> at % 8 & 1) << 4


def q4_0(block: bytes, at: int) -> float:
    return (nibble(block[2:], at) - 8) * half(block, 0)


def q4_1(block: bytes, at: int) -> float:
    return nibble(block[4:], at) * half(block, 0) + half(block, 2)


def q5_0(block: bytes, at: int) -> float:
    return ((nibble(block[6:], at) | fifth(block[2:6], at)) - 16) * half(block, 0)


def q5_1(block: bytes, at: int) -> float:
    return (nibble(block[8:], at) | fifth(block[4:8], at)) * half(block, 0) + half(block, 2)


def q8_0(block: bytes, at: int) -> float:
    return int(struct.unpack_from("b", block, 2 + at)[0]) * half(block, 0)


def scale_and_minimum(packed: bytes, eighth: int) -> tuple[int, int]:
    if eighth < 4:
        return packed[eighth] & 63, packed[eighth + 4] & 63
    return (
        (packed[eighth + 4] & 0xF) | (packed[eighth - 4] >> 6) << 4,
        (packed[eighth + 4] >> 4) | (packed[eighth] >> 6) << 4,
    )


def k_block(block: bytes, at: int, value: int) -> float:
    scale, minimum = scale_and_minimum(block[4:16], at // 32)
    return half(block, 0) * scale * value - half(block, 2) * minimum


def k_nibble(packed: bytes, at: int) -> int:
    byte = packed[at // 64 * 32 + at % 32]
    return byte >> 4 if at // 32 % 2 else byte & 0xF


def q4_k(block: bytes, at: int) -> float:
    return k_block(block, at, k_nibble(block[16:], at))


def q5_k(block: bytes, at: int) -> float:
    high = block[16 + at % 32] >> at // 32 & 1
    return k_block(block, at, k_nibble(block[48:], at) | high << 4)


def q6_k(block: bytes, at: int) -> float:
    side, quarter, place = at // 128, at % 128 // 32, at % 32
    byte = block[side * 64 + quarter % 2 * 32 + place]
    low = byte >> 4 if quarter >= 2 else byte & 0xF
    high = block[128 + side * 32 + place] >> 2 * quarter & 3
    scale = int(struct.unpack_from("b", block, 192 + at // 16)[0])
    return float((low | high << 4) - 32) * scale * half(block, 208)


def mxfp4(block: bytes, at: int) -> float:
    return e2m1(nibble(block[1:], at)) * 2.0 ** (block[0] - 127)


REFERENCES: Mapping[str, Callable[[bytes, int], float]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "MXFP4": mxfp4,
}
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "MXFP4": ()}


def random_blocks(name: str, count: int, seed: int = 0) -> bytes:
    """Random bytes with finite numbers where the type has numbers in float16."""
    chance = random.Random(seed)
    blocks = []
    for _ in range(count):
        block = bytearray(chance.randbytes(SIZES[name][1]))
        for at in HALVES.get(name, (0,)):
            struct.pack_into("<e", block, at, chance.uniform(-0.1, 0.1))
        if name == "MXFP4":
            block[0] = chance.randrange(100, 140)
        blocks.append(bytes(block))
    return b"".join(blocks)


def test_every_type_of_a_file_is_read() -> None:
    assert SIZES.keys() == DEQUANTISE.keys() | PLAIN.keys()
    assert REFERENCES.keys() == DEQUANTISE.keys()


@pytest.mark.parametrize("name", REFERENCES)
def test_blocks_are_what_their_definition_says(name: str) -> None:
    num_values, size = SIZES[name]
    raw = random_blocks(name, 5)
    blocks = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(5, size)
    expected = [
        [REFERENCES[name](raw[index * size : (index + 1) * size], at) for at in range(num_values)]
        for index in range(5)
    ]
    assert torch.allclose(DEQUANTISE[name](blocks), torch.tensor(expected), rtol=1e-5, atol=1e-6)
