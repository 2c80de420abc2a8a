"""Root-mean-square normalisation (Zhang & Sennrich 2019). The mean is taken in float32 whatever the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from engine.models.attention.spec import AttentionSpec
from engine.models.layers.division import DeviceGroup, share_of, whole
from engine.models.layers.weights import StoredLayer, WeightedLayer
from engine.models.operators import find_operators


class RMSNorm(WeightedLayer):
    """Normalises the last dimension and scales it."""

    def __init__(self, size: int, eps: float, *, offset: float = 0.0) -> None:
        """`offset` is added to the stored weight: the scale of Gemma's norms is 1 + w."""
        super().__init__()
        self._share = whole(size)
        self._group: DeviceGroup | None = None
        self._eps = eps
        self._offset = offset
        self._weight = torch.empty(0)

    def divide(self, stored: RMSNorm, group: DeviceGroup) -> None:
        """Become this device's share of a norm over all heads; one of the same size is on each device."""
        size = self._share.size
        if size != stored._share.size:
            self._share, self._group = share_of(size, stored._share.size, group), group

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return {"weight": [(self._share.size,)]}

    def load_from(self, stored: StoredLayer) -> None:
        self.load("weight", [stored.load("weight", rows=self._share.of(self._share.size))])

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        (self._weight,) = _shifted(parts, self._offset)

    def forward(self, x: torch.Tensor, delta: torch.Tensor | None = None) -> torch.Tensor:
        """x [T, size], normalised and scaled. `delta`, like x, is added to x beforehand, in place."""
        if self._group is not None:
            return normalise_together(x, self._weight, self._eps, self._group)
        operators = find_operators(x.device.type, x.dtype)
        return operators.add_and_normalise(x, delta, self._weight, eps=self._eps)


def normalise_together(x: torch.Tensor, weight: torch.Tensor, eps: float, group: DeviceGroup) -> torch.Tensor:
    """x [..., size], by the mean over all devices' features, each of which equally many devices have."""
    wide = x.float()
    squares = group.all_reduce(wide.square().sum(dim=-1, keepdim=True))
    return (wide * (squares / (x.shape[-1] * group.size) + eps).rsqrt()).to(x.dtype) * weight


class HeadNorm(WeightedLayer):
    """The scales for normalising each head of queries and keys separately, as `rotate_and_store` does."""

    def __init__(
        self, head_dim: int, num_heads: int, num_kv_heads: int, eps: float, *, offset: float = 0.0
    ) -> None:
        super().__init__()
        self._shape = (head_dim,)
        self._num_heads = (num_heads, num_kv_heads)
        self._offset = offset
        self.eps = eps
        self.weight = torch.empty(0)  # [num_heads + num_kv_heads, head_dim]

    @classmethod
    def of(cls, spec: AttentionSpec, eps: float, *, offset: float = 0.0) -> Self:
        return cls(spec.head_dim, spec.num_heads, spec.num_kv_heads, eps, offset=offset)

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return {"weight": [self._shape, self._shape]}

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        scales = zip(_shifted(parts, self._offset), self._num_heads, strict=True)
        self.weight = torch.cat([scale.expand(count, -1) for scale, count in scales])


def _shifted(weights: Sequence[torch.Tensor], offset: float) -> list[torch.Tensor]:
    """Rounded once: the sum is computed in float32."""
    return [weight if not offset else (weight.float() + offset).to(weight.dtype) for weight in weights]
