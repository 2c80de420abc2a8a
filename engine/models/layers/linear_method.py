"""How a linear layer holds its matrix and multiplies by it: as it is, or packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from engine.models.layers import packed_linear
from engine.models.layers.weights import StoredLayer


@dataclass(frozen=True, slots=True)
class MatrixTensor:
    """One of the tensors that a checkpoint's projection is stored in, and its axes.

    Fused projections are joined, and shares of several devices divided, along these axes.
    """

    shape: tuple[int, ...]
    outputs: int | None = None  # the axis along the output features
    inputs: int | None = None  # along the input features
    dtype: torch.dtype | None = None  # what it is loaded as; None: the model's
    is_derived: bool = False  # the source has no tensor of this name: the method reads it from others


class LinearMethod(nn.Module):
    """Chosen once per layer, by device, dtype and what is stored. A module: its tensors move with the model.

    A method that multiplies by a quantised matrix as stored says so by `tensors`, and reads it by `read`:
    engine/models/layers/scaled_linear.py.
    """

    def tensors(self, in_features: int, out_features: int, *, bias: bool) -> Mapping[str, MatrixTensor]:
        """The tensors of one projection, by their names in the checkpoint."""
        raise NotImplementedError

    def read(
        self,
        stored: StoredLayer,
        name: str,
        part: int,
        slices: tuple[slice, slice],
        dtype: torch.dtype | None,
    ) -> torch.Tensor:
        """The rows and columns of one of a projection's tensors, on the layer's device."""
        return stored.load(name, part, rows=slices[0], columns=slices[1], dtype=dtype)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The layer's tensors, of all projections and on its device. Must keep none that it has converted."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in_features] → [T, out_features]."""
        raise NotImplementedError


class PlainLinear(LinearMethod):
    """The matrix as PyTorch multiplies by it, in the model's dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.empty(0)
        self.bias: torch.Tensor | None = None

    def tensors(self, in_features: int, out_features: int, *, bias: bool) -> Mapping[str, MatrixTensor]:
        tensors = {"weight": MatrixTensor((out_features, in_features), outputs=0, inputs=1)}
        if bias:
            tensors["bias"] = MatrixTensor((out_features,), outputs=0)
        return tensors

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.weight, self.bias = tensors["weight"].contiguous(), tensors.get("bias")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear(PlainLinear):
    """In oneDNN's own layout, for CPUs."""

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.weight, self.bias = packed_linear.pack(tensors["weight"]), tensors.get("bias")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return packed_linear.multiply(x, self.weight, self.bias)


def choose_method(stored: StoredLayer, *, packs_float32: bool) -> LinearMethod:
    """The fastest one that computes what the checkpoint says. See Linear for `packs_float32`."""
    is_wanted = packs_float32 or stored.dtype is not torch.float32
    if stored.device.type == "cpu" and is_wanted and packed_linear.is_available(stored.dtype):
        return PackedLinear()
    return PlainLinear()
