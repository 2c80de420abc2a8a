"""ggml's quantised types: blocks of bytes to float32.

Each function takes uint8 [blocks, bytes of a block] and returns float32 [blocks, values of a block]. A block
of 32 values has a scale in float16, perhaps a minimum; one of 256 ("K") has eight or sixteen scales of its
own, which are multiples of it. The layouts are those of ggml's block_* structures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from engine.models.quantised.mxfp4 import E2M1


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at a byte of every block: [blocks, 1] in float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Lower halves of all bytes, then upper halves: [blocks, 2 * bytes]."""
    return torch.cat((packed & 0xF, packed >> 4), dim=1)


def _fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """32 bits in four bytes, lowest first, as 16s: [blocks, 32]."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1) << 4


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return (_nibbles(blocks[:, 2:]).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _nibbles(blocks[:, 4:]).float() * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (values.float() - 16) * _half(blocks, 0)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return values.float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _six_bits(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight minima of 6 bits in twelve bytes: [blocks, 8] each.

    The first four of each have bytes of their own, whose two upper bits belong to the last four; these have
    their lower halves in the last four bytes.
    """
    scales, minima, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        torch.cat((scales & 63, (rest & 0xF) | (scales >> 6 << 4)), dim=1),
        torch.cat((minima & 63, (rest >> 4) | (minima >> 6 << 4)), dim=1),
    )


def _scaled_eighths(blocks: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`values` [blocks, 8, 32], scaled by what Q4_K and Q5_K begin with."""
    scales, minima = _six_bits(blocks[:, 4:16])
    scale, minimum = _half(blocks, 0) * scales.float(), _half(blocks, 2) * minima.float()
    return (values.float() * scale.unsqueeze(-1) - minimum.unsqueeze(-1)).flatten(1)


def _eighths(packed: torch.Tensor) -> torch.Tensor:
    """128 bytes → [blocks, 8, 32]: 32 bytes have an eighth in their lower halves, the next in their upper."""
    quarters = packed.reshape(-1, 4, 1, 32)
    return torch.cat((quarters & 0xF, quarters >> 4), dim=2).reshape(-1, 8, 32)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    return _scaled_eighths(blocks, _eighths(blocks[:, 16:]))


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    shifts = torch.arange(8, dtype=torch.uint8).reshape(1, 8, 1)
    fifth = ((blocks[:, 16:48].unsqueeze(1) >> shifts) & 1) << 4  # bit n: of eighth n
    return _scaled_eighths(blocks, _eighths(blocks[:, 48:]) | fifth)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """Two halves of 128 values; of each, 64 bytes have lower halves and 32 bytes the two bits above."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat((low & 0xF, low >> 4), dim=2).reshape(-1, 2, 4, 32)
    shifts = torch.tensor((0, 2, 4, 6), dtype=torch.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    values = ((low | high << 4).float() - 32).reshape(-1, 16, 16)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208)
    return (values * scales.unsqueeze(-1)).flatten(1)


def _mxfp4(blocks: torch.Tensor) -> torch.Tensor:
    """An exponent of two plus 127, then 16 bytes."""
    scales = torch.ldexp(torch.ones(len(blocks), 1), blocks[:, :1].int() - 127)
    return E2M1[_nibbles(blocks[:, 1:]).int()] * scales


DEQUANTISE: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "MXFP4": _mxfp4,
}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
