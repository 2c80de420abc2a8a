"""MXFP4 as gpt-oss saves its experts: blocks of 32 values of 4 bits, with an exponent each.

`<name>_blocks` uint8 [experts, out, in / 32, 16], the lower half of a byte first; `<name>_scales` uint8
[experts, out, in / 32], exponents of two plus 127. The model's own tensor is [experts, in, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import CheckpointError
from engine.models.quantised.packing import bounds
from engine.models.quantised.source import Contents
from engine.models.tensor_source import TensorSource

_BLOCK = 32
_BIAS = 127
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = torch.tensor([*_POSITIVE, *(-value for value in _POSITIVE)])


class MXFP4:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: quantization_config; the layers that aren't converted have no blocks."""

    def contents(self, source: TensorSource) -> Contents:
        stems = [name.removesuffix("_blocks") for name in source.names if name.endswith("_blocks")]
        for stem in stems:
            blocks, scales = f"{stem}_blocks", f"{stem}_scales"
            if scales not in source.names:
                raise CheckpointError(f"The checkpoint has {blocks}, but not {scales}.")
            shape = source.shape(blocks)
            if len(shape) != 4 or shape[3] != _BLOCK // 2 or source.shape(scales) != shape[:3]:
                raise CheckpointError(
                    f"The checkpoint's {blocks} has shape {list(shape)} instead of [experts, out, blocks, "
                    f"16], or {scales} has {list(source.shape(scales))} instead of [experts, out, blocks]."
                )
        return Contents(
            {stem: MXFP4Tensor(source, stem) for stem in stems},
            frozenset(f"{stem}{part}" for stem in stems for part in ("_blocks", "_scales")),
        )


@dataclass(frozen=True, slots=True)
class MXFP4Tensor:
    source: TensorSource
    stem: str

    @property
    def shape(self) -> tuple[int, ...]:
        num_experts, num_outputs, num_blocks, _ = self.source.shape(f"{self.stem}_blocks")
        return (num_experts, num_blocks * _BLOCK, num_outputs)

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        start, stop = bounds(columns, self.shape[1])
        blocks = slice(start // _BLOCK, -(-stop // _BLOCK))
        packed = self.source.tensor(f"{self.stem}_blocks", rows=rows)[:, :, blocks]
        exponents = self.source.tensor(f"{self.stem}_scales", rows=rows)[:, :, blocks]
        values = dequantise_mxfp4(packed, exponents)  # [experts, out, in]
        first = blocks.start * _BLOCK
        return values[:, :, start - first : stop - first].transpose(1, 2).contiguous()


def dequantise_mxfp4(packed: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """uint8 [..., blocks, 16] and [..., blocks] → float32 [..., blocks * 32]."""
    pairs = torch.stack((E2M1.repeat(16), E2M1.repeat_interleave(16)), dim=-1)  # of each byte
    values = pairs.index_select(0, packed.flatten().int()).reshape(*packed.shape[:-1], _BLOCK)
    scales = torch.ldexp(torch.ones(exponents.shape), exponents.int() - _BIAS)
    return values.mul_(scales.unsqueeze(-1)).flatten(-2)
