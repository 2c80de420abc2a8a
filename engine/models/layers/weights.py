"""What every layer with weights tells the loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class WeightedLayer(nn.Module):
    """A layer that is filled from a checkpoint.

    One of its tensors may be stored in several parts, as a fused projection is: the checkpoint has one
    tensor per part.
    """

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        """For each tensor's name ("weight", "bias"), the shapes of the parts it is stored in."""
        raise NotImplementedError

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        """Take the parts of one tensor, checked for shape, on the model's device and in its dtype.

        The layer may keep them in another form, and holds no other reference to them.
        """
        raise NotImplementedError
