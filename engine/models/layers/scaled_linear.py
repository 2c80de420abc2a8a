"""A linear layer whose matrix stays in 8 bits, with a scale for each row."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.models.layers import scaled_products
from engine.models.layers.linear_method import LinearMethod, MatrixTensor
from engine.models.layers.weights import StoredLayer
from engine.models.tensor_source import ScaledWeight, scaled_weight


class ScaledLinear(LinearMethod):
    """Quantises its input's rows for each product, by their own maxima.

    A checkpoint's static scales of activations aren't used: a row's own is never worse.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """`dtype`: the matrix's, float8_e4m3fn or int8."""
        super().__init__()
        self._dtype = dtype
        self.weight = torch.empty(0)
        self.scales = torch.empty(0)
        self.bias: torch.Tensor | None = None

    @classmethod
    def of(cls, stored: StoredLayer, in_features: int, out_features: int) -> ScaledLinear | None:
        """None where the source has no such matrix, or this device doesn't multiply by it."""
        parts = [_scaled(stored, part) for part in range(len(stored.paths))]
        dtypes = {None if part is None else part.dtype for part in parts}
        dtype = dtypes.pop()
        if (
            dtypes
            or dtype is None
            or not scaled_products.keeps(stored.device, dtype, (out_features, in_features))
        ):
            return None
        return cls(dtype)

    def tensors(self, in_features: int, out_features: int, *, bias: bool) -> Mapping[str, MatrixTensor]:
        tensors = {
            "weight": MatrixTensor((out_features, in_features), 0, 1, self._dtype),
            "scales": MatrixTensor((out_features, 1), 0, None, torch.float32, is_derived=True),
        }
        if bias:
            tensors["bias"] = MatrixTensor((out_features,), outputs=0)
        return tensors

    def read(
        self,
        stored: StoredLayer,
        name: str,
        part: int,
        slices: tuple[slice, slice],
        dtype: torch.dtype | None,
    ) -> torch.Tensor:
        scaled = _scaled(stored, part)
        if scaled is None or name == "bias":
            return super().read(stored, name, part, slices, dtype)
        tensor = scaled.stored(*slices) if name == "weight" else scaled.scales(slices[0])
        return tensor.to(stored.device)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.weight = tensors["weight"].contiguous()
        self.scales = tensors["scales"].reshape(1, -1).contiguous()
        self.bias = tensors.get("bias")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = scaled_products.multiply(x, self.weight, self.scales)
        return product if self.bias is None else product + self.bias


def _scaled(stored: StoredLayer, part: int) -> ScaledWeight | None:
    return scaled_weight(stored.source, stored.full_name("weight", part))
