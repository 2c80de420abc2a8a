"""Weights that have a type of 8 bits and scales: one per tensor, row, group or block."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.errors import CheckpointError
from engine.models.quantised.packing import bounds
from engine.models.tensor_source import TensorSource


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """(stored - zero point) * scale.

    A scale has the stored tensor's dimensions, each 1 (one scale for all), as large, or one per block; or it
    has the first dimension alone.
    """

    source: TensorSource
    name: str
    scale: str
    zero_point: str | None = None
    block: tuple[int, int] | None = None  # rows and columns with one scale; None: equal parts, without rest
    divisor: float = 1.0
    is_of_products: bool = False  # activations are quantised, too, so that the product is one of 8 bits

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape(self.name)

    @property
    def dtype(self) -> torch.dtype:
        return self.source.tensor(self.name, rows=slice(0, 1)).dtype

    @property
    def multiplies(self) -> bool:
        """Whether a product can be made of it as it is stored: by one scale, or one for each row."""
        if not self.is_of_products or self.zero_point is not None or len(self.shape) != 2:
            return False
        return _with_dimensions(self.source.shape(self.scale), self.shape) in ((1, 1), (self.shape[0], 1))

    def stored(self, rows: slice, columns: slice) -> torch.Tensor:
        return self.source.tensor(self.name, rows=rows, columns=columns)

    def scales(self, rows: slice) -> torch.Tensor:
        start, stop = bounds(rows, self.shape[0])
        scales = self._spread(self.scale, rows, slice(0, 1)) / self.divisor
        return scales.expand(stop - start, 1)

    def check(self) -> None:
        """Raise CheckpointError if the scale doesn't have one of the shapes."""
        for name in (self.scale, self.zero_point):
            if name is not None:
                stored = self.source.shape(name)
                shape = _with_dimensions(stored, self.shape)
                if len(shape) != len(self.shape) or not shape:
                    raise CheckpointError(
                        f"The checkpoint's {name} has shape {list(stored)}, which doesn't fit "
                        f"{list(self.shape)} of {self.name}."
                    )
                in_blocks = not (all(size == 1 for size in shape[-2:]) or self._is_of_rows(shape))
                for dimension, scales in enumerate(shape):
                    self._block(dimension, scales, name, in_blocks=in_blocks)

    def _is_of_rows(self, shape: tuple[int, ...]) -> bool:
        """Whether it can only be a scale for each row, of a layer that isn't in blocks as the others are."""
        known = self.block is not None and self.block[0] > 1 and len(shape) > 1
        return known and shape[-2:] == (self.shape[-2], 1)

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        values = self.source.tensor(self.name, rows=rows, columns=columns).float()
        if self.zero_point is not None:
            values -= self._spread(self.zero_point, rows, columns)
        values *= self._spread(self.scale, rows, columns)
        return values if self.divisor == 1.0 else values.div_(self.divisor)

    def _spread(self, name: str, rows: slice, columns: slice) -> torch.Tensor:
        """The scales of a part, broadcastable to it."""
        stored = self.source.tensor(name).float()
        scales = stored.reshape(_with_dimensions(tuple(stored.shape), self.shape))
        parts = [rows, columns]
        for dimension in range(scales.dim()):
            if scales.shape[dimension] == 1:
                continue
            part = parts[dimension] if dimension < 2 else slice(None)
            start, stop = bounds(part, self.shape[dimension])
            block = self._block(dimension, scales.shape[dimension], name)
            first, last = start // block, -(-stop // block)
            spread = scales.narrow(dimension, first, max(0, last - first)).repeat_interleave(block, dimension)
            scales = spread.narrow(dimension, start - first * block, stop - start)
        return scales

    def _block(self, dimension: int, scales: int, name: str, *, in_blocks: bool = False) -> int:
        size, from_end = self.shape[dimension], dimension - len(self.shape)
        known = self.block is not None and from_end >= -2
        if scales in (1, size) and not (known and in_blocks):
            return size if scales == 1 else 1
        block = self.block[from_end] if self.block is not None and known else max(1, size // max(1, scales))
        if -(-size // block) != scales:
            raise CheckpointError(
                f"The checkpoint has {scales} scales in dimension {dimension} of {name}, which don't fit the "
                f"{size} of {self.name}."
            )
        return block


def _with_dimensions(shape: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...]:
    """A scale's shape with as many dimensions as its weight's: those that it lacks are the last ones."""
    if all(size == 1 for size in shape):
        return (1,) * len(weight)
    if len(shape) == 2 * len(weight):  # ModelOpt: [row blocks, 1, column blocks, 1]
        return shape[::2]
    return shape + (1,) * (len(weight) - len(shape))
