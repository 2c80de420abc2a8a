"""What a decoder computes between its matrix products: fused, by a device's kernels, or by PyTorch."""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F

from engine.models.activations import ACTIVATIONS, Activation
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
    ) -> torch.Tensor:
        """Normalise (if there are weights) and rotate queries and keys, and store keys and values.

        Returns the queries [T, heads, head_dim], contiguous but for the stride of their rows; `heads` is used
        up. heads [T, heads + 2 * kv_heads, head_dim]; weights [heads + kv_heads, head_dim]; cos and
        signed_sin [T, 1, size], where only the first `size` dimensions of a head are rotated; slots int64
        [T]; keys and values [kv_heads, slots, head_dim] are written.
        """
        ...

    def add_and_normalise(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, *, eps: float
    ) -> torch.Tensor:
        """Add `delta` to `residual` [T, size] in place; return the sum normalised and scaled by `weight`."""
        ...

    def activate_and_multiply(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """activation(first half) * second half of the last dimension: [T, 2 * size] → [T, size]."""
        ...


class FusedOperators(Operators, Protocol):
    """A device's kernels."""

    @property
    def activations(self) -> frozenset[Activation]: ...

    def can_rotate(self, head_dim: int, size: int) -> bool:
        """Whether they rotate the first `size` dimensions of such heads."""
        ...


class TorchOperators:
    """Implements Operators on any device; the reference for the kernels."""

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
    ) -> torch.Tensor:
        num_rotated = heads.shape[1] - keys.shape[0]
        num_queries = num_rotated - keys.shape[0]
        rotated = heads[:, :num_rotated]
        if weights is not None:
            rotated = _normalised(rotated, eps) * weights
        rotated = _rotated(rotated, cos, signed_sin)
        keys.index_copy_(1, slots, rotated[:, num_queries:].transpose(0, 1))
        values.index_copy_(1, slots, heads[:, num_rotated:].transpose(0, 1))
        return rotated[:, :num_queries]

    def add_and_normalise(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, *, eps: float
    ) -> torch.Tensor:
        if delta is not None:
            residual.add_(delta)
        return _normalised(residual, eps) * weight

    def activate_and_multiply(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return ACTIVATIONS[activation](gate).mul_(up)


class OperatorTable:
    """A device's kernels, and PyTorch's operators for what they can't compute."""

    def __init__(self, fused: FusedOperators, reference: Operators) -> None:
        self._fused = fused
        self._reference = reference
        self.add_and_normalise = fused.add_and_normalise

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
    ) -> torch.Tensor:
        can_rotate = self._fused.can_rotate(heads.shape[-1], cos.shape[-1])
        operators = self._fused if can_rotate else self._reference
        return operators.rotate_and_store(heads, weights, cos, signed_sin, slots, keys, values, eps=eps)

    def activate_and_multiply(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        operators = self._fused if activation in self._fused.activations else self._reference
        return operators.activate_and_multiply(gate_up, activation)


def find_operators(device_type: str, dtype: torch.dtype) -> Operators:
    """Those of a device and element type; always the same object."""
    return _triton_operators() if uses_triton(device_type) else _native_operators(device_type, dtype)


@cache
def _triton_operators() -> Operators:
    from engine.models.triton_kernels.layers import TritonOperators  # imports Triton, so only if used

    return OperatorTable(TritonOperators(), TorchOperators())


@cache
def _native_operators(device_type: str, dtype: torch.dtype) -> Operators:
    kernels = find_kernels(device_type, dtype)
    return TorchOperators() if kernels is None else OperatorTable(kernels, TorchOperators())


def _rotated(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """[T, heads, head_dim] → the same; the halves of what is rotated turn against each other."""
    size = cos.shape[-1]
    turned = x[..., :size]
    turned = torch.addcmul(turned * cos, torch.roll(turned, size // 2, dims=-1), signed_sin)
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), dim=-1)


def _normalised(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x divided by the root of the mean square of its last dimension.

    On a CPU, PyTorch's operator for half types stores the squares in float32: this takes half as long.
    """
    size = x.shape[-1]
    if x.device.type != "cpu" or x.dtype is torch.float32:
        return F.rms_norm(x, (size,), None, eps)
    length: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return (x * length.square_().div_(size).add_(eps).rsqrt_()).to(x.dtype)
