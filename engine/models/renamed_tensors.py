"""A source of tensors under other names."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.models.tensor_source import ALL, ScaledWeight, TensorSource, scaled_weight


class RenamedTensors:
    """What a checkpoint stores, by the names that the model's modules give them.

    It goes around a source that dequantises: settings of a quantiser name layers as they are stored, and so
    are the parts of their weights.
    """

    def __init__(self, source: TensorSource, rename: Callable[[str], str]) -> None:
        self._source = source
        self._stored = {rename(name): name for name in source.names}
        self.names = frozenset(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._stored[name])

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        return self._source.tensor(self._stored[name], rows=rows, columns=columns)

    def scaled(self, name: str) -> ScaledWeight | None:
        return scaled_weight(self._source, self._stored[name]) if name in self._stored else None
