"""Root-mean-square normalisation (Zhang & Sennrich 2019). The mean is taken in float32 whatever the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from engine.models.layers.weights import WeightedLayer
from engine.models.operators import Operators, find_operators


class RMSNorm(WeightedLayer):
    """Normalises the last dimension and scales it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self._shape = (size,)
        self._eps = eps
        self._weight = torch.empty(0)
        self._operators: Operators | None = None

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return {"weight": [self._shape]}

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        (self._weight,) = parts
        self._operators = find_operators(self._weight.device.type, self._weight.dtype)

    def forward(self, x: torch.Tensor, delta: torch.Tensor | None = None) -> torch.Tensor:
        """x [T, size], normalised and scaled. `delta`, like x, is added to x beforehand, in place."""
        if self._operators is not None:
            return self._operators.add_and_normalise(x, delta, self._weight, eps=self._eps)
        if delta is not None:
            x.add_(delta)
        return _normalise(x, self._eps) * self._weight


class HeadNorm(WeightedLayer):
    """Normalises each head of queries and keys separately, in one operation.

    The parts of its weight are the scales of queries and keys.
    """

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, num_heads + num_kv_heads, head_dim] → the same."""
        return _normalise(x, self.eps) * self.weight


def _normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x divided by the root of the mean square of its last dimension.

    On a CPU, PyTorch's operator for half types stores the squares in float32: this takes half as long.
    """
    size = x.shape[-1]
    if x.device.type != "cpu" or x.dtype is torch.float32:
        return F.rms_norm(x, (size,), None, eps)
    length: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return (x * length.square_().div_(size).add_(eps).rsqrt_()).to(x.dtype)
