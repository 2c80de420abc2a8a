"""Attention by kernels that read the cache's blocks in place: which ones a device has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from engine.models.inputs import BlockReader, PagedSequences
from engine.models.native.kernels import Kernels, find_kernels, fits_head_dim
from engine.models.operators import Operators
from engine.models.triton_kernels.switches import uses_triton


class BlockKernels(Protocol):
    """Attention for one model's shape and one cache."""

    @property
    def reader(self) -> BlockReader:
        """The sequences that `attend` runs; others are left to PyTorch."""
        ...

    @property
    def operators(self) -> Operators:
        """The kernels between the matrix products, which also store keys and values."""
        ...

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        paged: PagedSequences,
        out: torch.Tensor,
    ) -> None:
        """Each query attends to its sequence up to its own position; the step's keys and values are stored.

        queries [T, heads, head_dim], contiguous but for the stride of its rows; keys and values [kv_heads,
        slots, head_dim]; the sequences' rows of out [T, heads * head_dim] are written.
        """
        ...


@dataclass(frozen=True, slots=True)
class NativeAttention:
    """On a CPU: decodes only."""

    operators: Kernels
    block_size: int
    reader: ClassVar[BlockReader] = BlockReader.DECODES

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        paged: PagedSequences,
        out: torch.Tensor,
    ) -> None:
        self.operators.decode_attention(
            queries[: paged.num_decodes],
            keys,
            values,
            paged.blocks,
            paged.starts,
            paged.contexts,
            block_size=self.block_size,
            out=out,
        )


def find_block_kernels(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> BlockKernels | None:
    """None: PyTorch's own operators are used for everything."""
    if not fits_head_dim(head_dim):
        return None
    if uses_triton(device.type):
        from engine.models.triton_kernels.attention import PagedAttention

        return PagedAttention(num_heads, num_kv_heads, head_dim, block_size, processors_of(device))
    kernels = find_kernels(device.type, dtype)
    return None if kernels is None else NativeAttention(kernels, block_size)


def processors_of(device: torch.device) -> int:
    """A GPU's multiprocessors."""
    if device.type != "cuda":
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
