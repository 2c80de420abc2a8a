"""Integers of a few bits, packed into words of 32, and the parts of tensors that are read."""

from __future__ import annotations

import math

import torch


def bounds(part: slice, size: int) -> tuple[int, int]:
    """The first index of a slice, and the one after its last."""
    start, stop, step = part.indices(size)
    if step != 1:
        raise ValueError(f"A part of a tensor is contiguous; the slice has a step of {step}.")
    return start, max(start, stop)


def values_per_unit(bits: int) -> int:
    """How many values start and end together with words: 8 of 4 bits in one word, 32 of 3 bits in three."""
    return 32 // math.gcd(32, bits)


def words_for(count: int, bits: int) -> int:
    return -(-count * bits // 32)


def words_of(start: int, stop: int, bits: int) -> tuple[slice, int]:
    """The words that contain values `start` to `stop`, and the index of the first value in them."""
    unit = values_per_unit(bits)
    words = unit * bits // 32
    first = start // unit
    return slice(first * words, -(-stop // unit) * words), first * unit


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [..., words] → uint8 or int32 [..., values], without sign; a word's lowest bits come first.

    Values may lie across two words (3 bits); if a unit's last words are missing, so are their values.
    """
    if 8 % bits == 0:  # bytes are in the order of their bits: all machines that run this are little-endian
        of_bytes = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
        parts = [(of_bytes >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        return torch.stack(parts, dim=-1).flatten(-2)
    unit = values_per_unit(bits)
    per_unit = unit * bits // 32
    if missing := -words.shape[-1] % per_unit:
        words = torch.nn.functional.pad(words, (0, missing))
    words = words.reshape(*words.shape[:-1], words.shape[-1] // per_unit, per_unit)
    at = torch.arange(unit, dtype=torch.int32) * bits
    word, shift = (at // 32).long(), at % 32
    values = (words[..., word] >> shift) & _mask(torch.clamp(32 - shift, max=bits))
    across = (shift + bits > 32).nonzero().flatten()
    if len(across):
        low = 32 - shift[across]
        values[..., across] |= (words[..., word[across] + 1] & _mask(bits - low)) << low
    return values.flatten(-2)


def _mask(bits: torch.Tensor) -> torch.Tensor:
    return (1 << bits) - 1
