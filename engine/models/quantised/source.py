"""A quantised checkpoint as a source of plain weights, which are dequantised when they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from engine.errors import CheckpointError
from engine.models.quantised.packing import bounds
from engine.models.quantised.scaled import ScaledTensor
from engine.models.tensor_source import ALL, ScaledWeight, TensorSource

# Scales of activations and of a KV cache in 8 bits. Neither is quantised here: no result depends on them.
_OF_ACTIVATIONS = (
    ".input_scale",
    ".input_scale_ub",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".activation_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".k_zero_point",
    ".v_zero_point",
    ".kv_scale",
)


_AT_ONCE = 1 << 22  # values: dequantising uses up to ten times their memory
_ALIGNED = 128  # rows: no packed word, no group and no block of rows is larger


class QuantisedTensor(Protocol):
    """A tensor of the model that is stored in quantised form."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        """A part of its first two dimensions, in float32; no more is read than the format requires."""
        ...


@dataclass(frozen=True, slots=True)
class Contents:
    """What a format finds in a checkpoint."""

    quantised: Mapping[str, QuantisedTensor]  # by the names that the model's modules give them
    parts: frozenset[str]  # stored names that `quantised` are read from, and others that no model needs


class WeightFormat(Protocol):
    def contents(self, source: TensorSource) -> Contents:
        """Reads no weights. Raises CheckpointError for parts that are missing or contradict each other."""
        ...


class DequantisedSource:
    """The model's tensors as they were before they were quantised; those that weren't, as stored."""

    def __init__(self, source: TensorSource, format: WeightFormat) -> None:
        """Raises CheckpointError."""
        self._source = source
        contents = format.contents(source)
        self._quantised = contents.quantised
        plain = source.names - contents.parts - contents.quantised.keys()
        self.names = frozenset(name for name in plain if not name.endswith(_OF_ACTIVATIONS)) | frozenset(
            self._quantised
        )

    @property
    def num_quantised(self) -> int:
        return len(self._quantised)

    @property
    def has_scaled(self) -> bool:
        return any(self.scaled(name) is not None for name in self._quantised)

    def scaled(self, name: str) -> ScaledWeight | None:
        """A matrix that may be multiplied as it is stored."""
        tensor = self._quantised.get(name)
        return tensor if isinstance(tensor, ScaledTensor) and tensor.multiplies else None

    def shape(self, name: str) -> tuple[int, ...]:
        quantised = self._quantised.get(name)
        return self._source.shape(name) if quantised is None else quantised.shape

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        quantised = self._quantised.get(name)
        if quantised is not None:
            return _read(quantised, *bounds(rows, quantised.shape[0]), columns)
        tensor = self._source.tensor(name, rows=rows, columns=columns)
        if tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool:
            stored = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"The checkpoint stores {name} as {stored}, but no scale for it.")
        return tensor


def _read(tensor: QuantisedTensor, start: int, stop: int, columns: slice) -> torch.Tensor:
    """Rows `start` to `stop`, some at a time."""
    step = max(1, _AT_ONCE // max(1, math.prod(tensor.shape[1:])))
    step = step // _ALIGNED * _ALIGNED or step
    if stop - start <= step:
        return tensor.read(slice(start, stop), columns)
    first = tensor.read(slice(start, start + step), columns)
    values = torch.empty(stop - start, *first.shape[1:])
    values[:step] = first
    for at in range(start + step, stop, step):
        values[at - start : at - start + step] = tensor.read(slice(at, min(stop, at + step)), columns)
    return values
