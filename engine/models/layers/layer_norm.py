"""Layer normalisation (Ba et al. 2016), for encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from engine.models.layers.weights import WeightedLayer


class LayerNorm(WeightedLayer):
    """Normalises the last dimension, scales it and, with a bias, shifts it."""

    def __init__(self, size: int, eps: float, *, bias: bool = True) -> None:
        super().__init__()
        self._shape = (size,)
        self._eps = eps
        self._has_bias = bias
        self._weight = torch.empty(0)
        self._bias: torch.Tensor | None = None

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        names = ("weight", "bias") if self._has_bias else ("weight",)
        return {name: [self._shape] for name in names}

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        (part,) = parts
        if name == "weight":
            self._weight = part
        else:
            self._bias = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, size] → the same, in x's dtype."""
        bias = None if self._bias is None else self._bias.to(x.dtype)
        return F.layer_norm(x, self._shape, self._weight.to(x.dtype), bias, self._eps)
