"""Root-mean-square normalisation (Zhang & Sennrich 2019). The mean is taken in float32 whatever the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine.models.layers.weights import WeightedLayer
from engine.models.operators import find_operators


class RMSNorm(WeightedLayer):
    """Normalises the last dimension and scales it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self._shape = (size,)
        self._eps = eps
        self._weight = torch.empty(0)

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return {"weight": [self._shape]}

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        (self._weight,) = parts

    def forward(self, x: torch.Tensor, delta: torch.Tensor | None = None) -> torch.Tensor:
        """x [T, size], normalised and scaled. `delta`, like x, is added to x beforehand, in place."""
        operators = find_operators(x.device.type, x.dtype)
        return operators.add_and_normalise(x, delta, self._weight, eps=self._eps)


class HeadNorm(WeightedLayer):
    """The scales for normalising each head of queries and keys separately, as `rotate_and_store` does."""

    def __init__(self, head_dim: int, num_heads: int, num_kv_heads: int, eps: float) -> None:
        super().__init__()
        self._shape = (head_dim,)
        self._num_heads = (num_heads, num_kv_heads)
        self.eps = eps
        self.weight = torch.empty(0)  # [num_heads + num_kv_heads, head_dim]

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return {"weight": [self._shape, self._shape]}

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        rows = [part.expand(count, -1) for part, count in zip(parts, self._num_heads, strict=True)]
        self.weight = torch.cat(rows)
