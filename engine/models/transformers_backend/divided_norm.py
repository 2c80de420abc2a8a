"""A norm over all heads' queries or keys, of which each device has some."""

from __future__ import annotations

import torch
from torch import nn

from engine.models.layers.division import DeviceGroup
from engine.models.layers.norm import normalise_together


class DividedNorm(nn.Module):
    def __init__(self, weight: nn.Parameter, eps: float, offset: int, group: DeviceGroup) -> None:
        """`offset` is added to the weight, which has the name that the loader knows."""
        super().__init__()
        self.weight = weight
        self._eps = eps
        self._offset = offset
        self._group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight + self._offset if self._offset else self.weight
        return normalise_together(x, weight, self._eps, self._group)
