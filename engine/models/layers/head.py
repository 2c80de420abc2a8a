"""The last layers of a classifier, in float32 whatever the model's dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from engine.models.layers.weights import StoredLayer, WeightedLayer


class Head(WeightedLayer):
    """y = x Wᵀ + b in float32, with W [out_features, in_features]."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, is_stored: bool = True) -> None:
        """`is_stored` False: the checkpoint lacks the tensors, and the caller loads derived ones."""
        super().__init__()
        self._shape = (out_features, in_features)
        self._has_bias = bias
        self._is_stored = is_stored
        self._weight = torch.empty(0)
        self._bias: torch.Tensor | None = None

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        if not self._is_stored:
            return {}
        shapes: dict[str, Sequence[tuple[int, ...]]] = {"weight": [self._shape]}
        if self._has_bias:
            shapes["bias"] = [self._shape[:1]]
        return shapes

    def load_from(self, stored: StoredLayer) -> None:
        for name in self.wanted(stored):
            self.load(name, [stored.load(name, dtype=torch.float32)])

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        (part,) = parts
        if name == "weight":
            self._weight = part.float()
        else:
            self._bias = part.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[S, in_features] → float32 [S, out_features]."""
        return F.linear(x.float(), self._weight, self._bias)
