"""bitsandbytes: nf4 and fp4, with absolute maxima that may be quantised themselves, and int8.

4 bits: `weight` uint8 [values / 2, 1], the tensor flat, the upper half of a byte first; per block of values
an entry in `weight.absmax`; `weight.quant_map` has the 16 values; what isn't a tensor is JSON in
`weight.quant_state.bitsandbytes__nf4` (or fp4). int8: `weight` [out, in] and `SCB` [out], a row's absolute
maximum, which stands for 127.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from engine.errors import CheckpointError
from engine.models.quantised.packing import bounds
from engine.models.quantised.scaled import ScaledTensor
from engine.models.quantised.source import Contents, QuantisedTensor
from engine.models.tensor_source import TensorSource

_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_MAX_INT8 = 127.0


class BitsAndBytes:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: quantization_config; the files themselves say which form a layer has."""

    def contents(self, source: TensorSource) -> Contents:
        quantised: dict[str, QuantisedTensor] = {}
        parts: set[str] = set()
        for name in source.names:
            if _STATE in name:
                weight = name.partition(_STATE)[0]
                quantised[weight] = _four_bits(source, weight, name)
                parts |= {name, *(f"{weight}{part}" for part in _PARTS)}
            elif name.endswith(".SCB"):
                stem = name.removesuffix("SCB")
                quantised[f"{stem}weight"] = _eight_bits(source, stem)
                parts |= {name, f"{stem}weight_format"}
        return Contents(quantised, frozenset(parts))


def _eight_bits(source: TensorSource, stem: str) -> ScaledTensor:
    if f"{stem}weight" not in source.names:
        raise CheckpointError(f"The checkpoint has {stem}SCB, but not {stem}weight.")
    format_name = f"{stem}weight_format"
    if format_name in source.names and bool(source.tensor(format_name).any()):
        raise CheckpointError(f"The checkpoint's {stem}weight is in the order of a GPU's tiles, not in rows.")
    tensor = ScaledTensor(source, f"{stem}weight", f"{stem}SCB", divisor=_MAX_INT8)
    tensor.check()
    return tensor


def _four_bits(source: TensorSource, weight: str, state_name: str) -> FourBitTensor:
    try:
        state = json.loads(bytes(source.tensor(state_name).flatten().tolist()))
        shape = tuple(int(size) for size in state["shape"])
        block_size = int(state["blocksize"])
        is_nested = state.get("nested_blocksize") is not None or f"{weight}.nested_absmax" in source.names
        nested = int(state["nested_blocksize"]) if is_nested else 0
        offset = float(state["nested_offset"]) if is_nested else 0.0
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"The checkpoint's {state_name} can't be read: {error!r}.") from error
    needed = [weight, f"{weight}.absmax", f"{weight}.quant_map"]
    needed += [f"{weight}.nested_absmax", f"{weight}.nested_quant_map"] if is_nested else []
    if absent := [name for name in needed if name not in source.names]:
        raise CheckpointError(f"The checkpoint has {state_name}, but not {absent[0]}.")
    num_values = math.prod(shape)
    if (
        min(shape, default=0) < 1
        or block_size < 2
        or block_size % 2
        or nested < is_nested
        or math.prod(source.shape(weight)) != -(-num_values // 2)
    ):
        raise CheckpointError(
            f"The checkpoint's {weight} has {math.prod(source.shape(weight))} bytes, which don't fit shape "
            f"{list(shape)} in blocks of {block_size}, as {state_name} has it."
        )
    num_blocks = -(-num_values // block_size)
    _check_count(source, f"{weight}.absmax", num_blocks, f"shape {list(shape)} in blocks of {block_size}")
    _check_count(source, f"{weight}.quant_map", 1 << 4, "4 bits")
    if nested:
        of_blocks = f"{num_blocks} blocks in groups of {nested}"
        _check_count(source, f"{weight}.nested_absmax", -(-num_blocks // nested), of_blocks)
        _check_count(source, f"{weight}.nested_quant_map", 1 << 8, "8 bits")
    return FourBitTensor(source, weight, shape, block_size, nested, offset)


def _check_count(source: TensorSource, name: str, count: int, of: str) -> None:
    """Raises CheckpointError. `of`: what needs so many values."""
    stored = math.prod(source.shape(name))
    if stored != count:
        raise CheckpointError(
            f"The checkpoint's {name} has {stored} values instead of {count}, which don't fit {of}."
        )


@dataclass(frozen=True)
class FourBitTensor:
    source: TensorSource
    weight: str
    shape: tuple[int, ...]
    block_size: int  # values
    nested_block_size: int  # absolute maxima; 0: they aren't quantised
    offset: float

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        first_row, end_row = bounds(rows, self.shape[0])
        row_size = math.prod(self.shape[1:])
        start, stop = first_row * row_size, end_row * row_size
        block, end_block = start // self.block_size, -(-stop // self.block_size)
        bytes_ = slice(block * self.block_size // 2, -(-end_block * self.block_size // 2))
        packed = self.source.tensor(self.weight, rows=bytes_).flatten()
        codes = self.source.tensor(f"{self.weight}.quant_map").flatten().float()
        pairs = torch.stack((codes.repeat_interleave(16), codes.repeat(16)), dim=-1)  # of each byte
        values = pairs.index_select(0, packed.int()).flatten()
        missing = (end_block - block) * self.block_size - len(values)  # of the tensor's last block
        blocks = torch.nn.functional.pad(values, (0, missing)).reshape(end_block - block, self.block_size)
        blocks *= self._maxima[block:end_block, None]
        first = start - block * self.block_size
        part = blocks.flatten()[first : first + stop - start].reshape(end_row - first_row, *self.shape[1:])
        return part if len(self.shape) < 2 else part[:, columns].contiguous()

    @cached_property
    def _maxima(self) -> torch.Tensor:
        stored = self.source.tensor(f"{self.weight}.absmax").flatten()
        if not self.nested_block_size:
            return stored.float()
        codes = self.source.tensor(f"{self.weight}.nested_quant_map").flatten().float()
        maxima = self.source.tensor(f"{self.weight}.nested_absmax").flatten().float()
        blocks = torch.arange(len(stored)) // self.nested_block_size
        return codes[stored.int()] * maxima[blocks] + self.offset
