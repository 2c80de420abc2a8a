"""What a decoder computes between its matrix products, fused, by the kernels that a device has."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch

from engine.models.native.kernels import find_kernels
from engine.models.triton_kernels.switches import uses_triton


class Operators(Protocol):
    """All tensors are contiguous, on one device and of one element type (or int64)."""

    def rotate_and_store(
        self,
        heads: torch.Tensor,
        weights: torch.Tensor | None,
        cos: torch.Tensor,
        signed_sin: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        eps: float,
    ) -> None:
        """Normalise (if there are weights) and rotate queries and keys, and store keys and values.

        Queries are changed in place. heads [T, heads + 2 * kv_heads, head_dim]; weights [heads + kv_heads,
        head_dim]; cos and signed_sin [T, 1, head_dim]; slots int64 [T]; keys and values [kv_heads, slots,
        head_dim] are written.
        """
        ...

    def add_and_normalise(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, *, eps: float
    ) -> torch.Tensor:
        """Add `delta` to `residual` [T, size] in place; return the sum normalised and scaled by `weight`."""
        ...

    def silu_and_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half of the last dimension: [T, 2 * size] → [T, size]."""
        ...


def find_operators(device_type: str, dtype: torch.dtype) -> Operators | None:
    """None if there are none and PyTorch's operators must be used."""
    return _triton_operators() if uses_triton(device_type) else find_kernels(device_type, dtype)


@cache
def _triton_operators() -> Operators:
    from engine.models.triton_kernels.layers import TritonOperators  # imports Triton, so only if used

    return TritonOperators()
