"""A TensorSource of tensors in memory, which tells what was read."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.models.layers.weights import StoredLayer, WeightedLayer
from engine.models.tensor_source import ALL

CPU = torch.device("cpu")


class MemorySource:
    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)
        self.names = frozenset(tensors)
        self.read: list[tuple[str, slice, slice]] = []

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        self.read.append((name, rows, columns))
        stored = self._tensors[name]
        return stored if rows == columns == ALL else stored[rows] if columns == ALL else stored[rows, columns]


def load_layer(
    layer: WeightedLayer,
    tensors: Mapping[str, torch.Tensor],
    *paths: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Load one layer whose parts are at `paths`."""
    layer.load_from(StoredLayer(MemorySource(tensors), paths or ("",), device=CPU, dtype=dtype))
