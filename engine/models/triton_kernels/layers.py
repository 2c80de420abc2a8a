"""What lies between a decoder's matrix products, each in one pass: norms, rotation, the gate."""

from __future__ import annotations

from typing import ClassVar

import torch
import triton
import triton.language as tl

from engine.models.activations import Activation
from engine.models.triton_kernels.launch import padded

_GATE_TILE = 1024


@triton.jit
def _add_and_normalise(
    residual, delta, weight, out, eps, SIZE: tl.constexpr, PADDED: tl.constexpr, HAS_DELTA: tl.constexpr
):
    offset = tl.arange(0, PADDED)
    is_inside = offset < SIZE
    row = tl.program_id(0).to(tl.int64) * SIZE
    x = tl.load(residual + row + offset, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(delta + row + offset, mask=is_inside, other=0.0).to(tl.float32)
        rounded = x.to(residual.dtype.element_ty)
        tl.store(residual + row + offset, rounded, is_inside)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
    scaled = x * scale * tl.load(weight + offset, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(out + row + offset, scaled.to(out.dtype.element_ty), is_inside)


@triton.jit
def _activate_and_multiply(gate_up, out, SIZE: tl.constexpr, TILE: tl.constexpr, ACTIVATION: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offset = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_inside = offset < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + offset, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + offset, mask=is_inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        gate = gate / (1 + tl.exp(-gate))
    elif ACTIVATION == "gelu":
        gate = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    else:  # x/2 * (1 + tanh(y)) = x * sigmoid(2y)
        exponent = -1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        gate = gate / (1 + tl.exp(tl.minimum(exponent, 80.0)))
    tl.store(out + row * SIZE + offset, (gate * up).to(out.dtype.element_ty), is_inside)


@triton.jit
def _rotate_and_store(
    heads,
    weights,
    cos,
    signed_sin,
    slots,
    keys,
    values,
    eps,
    head_stride,
    NUM_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """One head of one token, in two halves: each thread rotates elements that no other thread touches."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    offset = tl.arange(0, PADDED_HALF)
    is_inside = offset < HALF
    at = heads + (row * (NUM_HEADS + 2 * KV_HEADS) + head) * 2 * HALF + offset
    first = tl.load(at, mask=is_inside, other=0.0)
    second = tl.load(at + HALF, mask=is_inside, other=0.0)
    slot = tl.load(slots + row)
    if head < NUM_HEADS + KV_HEADS:
        a, b = first.to(tl.float32), second.to(tl.float32)
        if HAS_NORM:
            scale = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / (2 * HALF) + eps)
            weight = weights + head * 2 * HALF + offset
            a *= scale * tl.load(weight, mask=is_inside, other=0.0).to(tl.float32)
            b *= scale * tl.load(weight + HALF, mask=is_inside, other=0.0).to(tl.float32)
        angle = row * 2 * HALF + offset
        cos_a = tl.load(cos + angle, mask=is_inside, other=0.0).to(tl.float32)
        cos_b = tl.load(cos + angle + HALF, mask=is_inside, other=0.0).to(tl.float32)
        sin_a = tl.load(signed_sin + angle, mask=is_inside, other=0.0).to(tl.float32)
        sin_b = tl.load(signed_sin + angle + HALF, mask=is_inside, other=0.0).to(tl.float32)
        first = (a * cos_a + b * sin_a).to(first.dtype)
        second = (b * cos_b + a * sin_b).to(second.dtype)
    if head < NUM_HEADS:
        tl.store(at, first, is_inside)
        tl.store(at + HALF, second, is_inside)
    elif slot >= 0:  # a row that only fills up a batch has no slot
        is_key = head < NUM_HEADS + KV_HEADS
        kv_head = (head - NUM_HEADS) % KV_HEADS
        place = kv_head.to(tl.int64) * head_stride + slot * 2 * HALF + offset
        if is_key:
            tl.store(keys + place, first, is_inside)
            tl.store(keys + place + HALF, second, is_inside)
        else:
            tl.store(values + place, first, is_inside)
            tl.store(values + place + HALF, second, is_inside)


class TritonOperators:
    """Implements engine.models.operators.FusedOperators."""

    activations: ClassVar[frozenset[Activation]] = frozenset(("silu", "gelu", "gelu_tanh"))

    def can_rotate(self, head_dim: int, size: int) -> bool:
        return size == head_dim

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
        num_rows, num_all, head_dim = heads.shape
        kv_heads = keys.shape[0]
        half = head_dim // 2
        _rotate_and_store[(num_rows, num_all)](
            heads,
            weights,
            cos,
            signed_sin,
            slots,
            keys,
            values,
            eps,
            keys.stride(0),
            NUM_HEADS=num_all - 2 * kv_heads,
            KV_HEADS=kv_heads,
            HALF=half,
            PADDED_HALF=padded(half, least=2),
            HAS_NORM=weights is not None,
            num_warps=1,
        )
        return heads[:, : num_all - 2 * kv_heads]

    def add_and_normalise(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, *, eps: float
    ) -> torch.Tensor:
        out = torch.empty_like(residual)
        num_rows, size = residual.shape
        _add_and_normalise[(num_rows,)](
            residual,
            delta,
            weight,
            out,
            eps,
            SIZE=size,
            PADDED=padded(size),
            HAS_DELTA=delta is not None,
            num_warps=4 if size <= 2048 else 8,
        )
        return out

    def activate_and_multiply(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(num_rows, size)
        _activate_and_multiply[(num_rows, triton.cdiv(size, _GATE_TILE))](
            gate_up,
            out,
            SIZE=size,
            TILE=min(_GATE_TILE, padded(size)),
            ACTIVATION=activation,
            num_warps=4,
        )
        return out
