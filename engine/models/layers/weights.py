"""The interface between layers with weights and the loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class WeightedLayer(nn.Module):
    """A layer that is loaded from a checkpoint.

    A tensor may be stored in several parts, like a fused projection: the checkpoint has one tensor per part.
    """

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        """For each tensor's name ("weight", "bias"), the shapes of the parts it is stored in."""
        raise NotImplementedError

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        """Load the parts of one tensor, checked for shape, on the model's device and in its dtype.

        The layer may convert them, and must then drop all references to them.
        """
        raise NotImplementedError
