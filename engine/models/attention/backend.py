"""What computes attention over the paged KV cache: the contract, and which backend runs which layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from engine.models.attention.native import NativeBackend
from engine.models.attention.sdpa import SdpaBackend
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs
from engine.models.native.kernels import find_kernels
from engine.models.triton_kernels.switches import uses_triton


class AttentionBackend(Protocol):
    """Attention of one device and element type, for layers of any spec that it fits."""

    @property
    def has_fixed_shapes(self) -> bool:
        """Whether steps of as many decodes launch the same kernels: only such steps can be recorded."""
        ...

    def fits(self, spec: AttentionSpec) -> bool: ...

    def plan(self, inputs: StepInputs, window: int | None) -> Any:
        """What `attend` needs to know of a step; made once for all layers with the same window."""
        ...

    def store(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        cached_keys: torch.Tensor,
        cached_values: torch.Tensor,
        inputs: StepInputs,
    ) -> None:
        """Write keys and values [T, kv_heads, head_dim] to [kv_heads, slots, head_dim]."""
        ...

    def attend(
        self,
        spec: AttentionSpec,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        inputs: StepInputs,
        plan: Any,
        sinks: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Each query attends to its sequence up to its own position; the step's keys and values are stored.

        queries [T, heads, head_dim], contiguous but for the stride of its rows; keys and values [kv_heads,
        slots, head_dim]; sinks float32 [heads] if the spec has them; out [T, heads * head_dim] is written.
        """
        ...


def choose_backends(
    specs: Sequence[AttentionSpec], *, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[AttentionBackend]:
    """One per layer: the device's own, and PyTorch's operators for the layers that it doesn't fit."""
    reference = SdpaBackend(block_size, find_kernels(device.type, dtype))
    best = _device_backend(reference, block_size, dtype, device)
    return [best if best.fits(spec) else reference for spec in specs]


def _device_backend(
    reference: SdpaBackend, block_size: int, dtype: torch.dtype, device: torch.device
) -> AttentionBackend:
    if uses_triton(device.type):
        from engine.models.triton_kernels.attention import TritonBackend  # imports Triton, so only if used

        return TritonBackend(block_size, processors_of(device))
    if reference.kernels is None:
        return reference
    return NativeBackend(reference, reference.kernels)


def processors_of(device: torch.device) -> int:
    """A GPU's multiprocessors."""
    if device.type != "cuda":
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
