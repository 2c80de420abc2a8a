"""Linear layers, one or several of the checkpoint's projections fused into one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from engine.models.layers import packed_linear
from engine.models.layers.weights import WeightedLayer


class Linear(WeightedLayer):
    """y = x Wᵀ + b, with W [sum(out_features), in_features].

    `out_features` has one entry per projection of the checkpoint that is fused here.
    """

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        *,
        bias: bool = False,
        packs_float32: bool = False,
    ) -> None:
        """`packs_float32`: pack on a CPU in float32 too, which pays off for many rows at a time (twice as
        fast on AMD); a decoder's few rows gain nothing, and its results would depend on the number of rows.
        """
        super().__init__()
        self.in_features = in_features
        self.out_features = tuple(out_features)
        self._has_bias = bias
        self._packs_float32 = packs_float32
        self._weight = torch.empty(0)
        self._is_packed = False
        self._bias: torch.Tensor | None = None

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        shapes: dict[str, Sequence[tuple[int, ...]]] = {
            "weight": [(size, self.in_features) for size in self.out_features]
        }
        if self._has_bias:
            shapes["bias"] = [(size,) for size in self.out_features]
        return shapes

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        merged = parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
        if name == "bias":
            self._bias = merged
        elif self._packs(merged):
            self._weight, self._is_packed = packed_linear.pack(merged), True
        else:
            self._weight, self._is_packed = merged, False

    def _packs(self, weight: torch.Tensor) -> bool:
        is_wanted = self._packs_float32 or weight.dtype is not torch.float32
        return weight.device.type == "cpu" and is_wanted and packed_linear.is_available(weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in_features] → [T, sum(out_features)]."""
        if self._is_packed:
            return packed_linear.multiply(x, self._weight, self._bias)
        return F.linear(x, self._weight, self._bias)
