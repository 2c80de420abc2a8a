"""Layer normalisation (Ba et al. 2016), for encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from engine.models.layers.weights import WeightedLayer


class LayerNorm(WeightedLayer):
    """Normalises the last dimension, scales it and shifts it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self._shape = (size,)
        self._eps = eps
        self._weight = torch.empty(0)
        self._bias = torch.empty(0)

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return {"weight": [self._shape], "bias": [self._shape]}

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        (part,) = parts
        if name == "weight":
            self._weight = part
        else:
            self._bias = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, size] → the same."""
        return F.layer_norm(x, self._shape, self._weight, self._bias, self._eps)
