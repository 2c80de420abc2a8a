"""Attention with PyTorch's own operators, on any device; the reference for the others.

A sequence with adjacent blocks is a view of the cache, [kv_heads, context, head_dim], which
scaled-dot-product attention reads in place; only scattered blocks are gathered first.

Query heads that share a key-value head (GQA) are passed as further queries of that head, so that keys are
read once and not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from engine.models.attention.slices import attend_in_slices
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs
from engine.models.native.kernels import Kernels


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """One sequence of a step: its rows, and where the keys lie that one of its queries sees at least."""

    rows: slice
    num_rows: int
    num_keys: int  # up to the sequence's last position
    first_slot: int  # of the first key, in the cache if the blocks are adjacent, else in those gathered
    blocks: torch.Tensor | None  # to gather, int64 on the model's device
    mask: torch.Tensor | None  # bool [num_rows, num_keys]; None: all keys are visible, or it is causal

    @property
    def is_causal(self) -> bool:
        return self.mask is None and self.num_rows > 1

    def read(self, cached: torch.Tensor, block_size: int) -> torch.Tensor:
        """A sequence's keys or values of [kv_heads, slots, head_dim]: [kv_heads, num_keys, head_dim]."""
        if self.blocks is not None:
            kv_heads, _, head_dim = cached.shape
            paged = cached.view(kv_heads, -1, block_size * head_dim)
            cached = paged.index_select(1, self.blocks).view(kv_heads, -1, head_dim)
        return cached.narrow(1, self.first_slot, self.num_keys)


@dataclass(frozen=True, slots=True)
class SdpaBackend:
    """Implements engine.models.attention.backend.AttentionBackend."""

    block_size: int
    kernels: Kernels | None = None  # for the softmax between two products
    has_fixed_shapes: ClassVar[bool] = False

    def fits(self, spec: AttentionSpec) -> bool:
        return True

    def plan(self, inputs: StepInputs, window: int | None, *, first: int = 0) -> list[SequenceSpan]:
        """The sequences from the `first` on."""
        host = inputs.host
        bounds, contexts, starts = (
            host.first_rows[first:].tolist(),
            host.contexts.tolist(),
            host.starts.tolist(),
        )
        return [
            self._span(bounds[i], bounds[i + 1], contexts[first + i], inputs, starts[first + i], window)
            for i in range(inputs.num_sequences - first)
        ]

    def _span(
        self, first_row: int, stop_row: int, context: int, inputs: StepInputs, start: int, window: int | None
    ) -> SequenceSpan:
        num_rows = stop_row - first_row
        before = context - num_rows
        first_key = 0 if window is None else max(0, before - window + 1)
        first_block, stop_block = first_key // self.block_size, -(-context // self.block_size)
        table = inputs.host.blocks[start + first_block : start + stop_block].tolist()
        offset = first_key - first_block * self.block_size
        is_adjacent = are_consecutive(table)
        return SequenceSpan(
            rows=slice(first_row, stop_row),
            num_rows=num_rows,
            num_keys=context - first_key,
            first_slot=offset + (table[0] * self.block_size if is_adjacent else 0),
            blocks=None if is_adjacent else inputs.blocks[start + first_block : start + stop_block],
            mask=_mask(num_rows, context - first_key, window, inputs.blocks.device),
        )

    def store(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        cached_keys: torch.Tensor,
        cached_values: torch.Tensor,
        inputs: StepInputs,
    ) -> None:
        cached_keys.index_copy_(1, inputs.slots, keys.transpose(0, 1))
        cached_values.index_copy_(1, inputs.slots, values.transpose(0, 1))

    def attend(
        self,
        spec: AttentionSpec,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        inputs: StepInputs,
        plan: list[SequenceSpan],
        sinks: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        for span in plan:
            k, v = span.read(keys, self.block_size), span.read(values, self.block_size)
            out[span.rows] = self._attend_one(spec, queries[span.rows], k, v, span, sinks)

    def _attend_one(
        self,
        spec: AttentionSpec,
        rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        span: SequenceSpan,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """One sequence's queries [n, heads, head_dim] → [n, heads * head_dim]."""
        grouped = rows.view(span.num_rows, spec.num_kv_heads, -1, spec.head_dim)
        if self._runs_in_slices(spec, rows, span):
            attended = attend_in_slices(
                grouped.permute(1, 2, 0, 3), keys, values, spec, kernels=self.kernels, sinks=sinks
            )
        elif span.num_rows == 1:
            attended = F.scaled_dot_product_attention(grouped, keys[None], values[None], scale=spec.scale)
            return attended.reshape(1, -1)
        else:
            attended = _attend_to_shared(grouped, keys, values, spec.scale, span)
        return attended.permute(2, 0, 1, 3).reshape(span.num_rows, -1)

    def _runs_in_slices(self, spec: AttentionSpec, rows: torch.Tensor, span: SequenceSpan) -> bool:
        """PyTorch's operator has no cap and no sinks, and on a CPU it is slow for prompts in bfloat16."""
        if spec.softcap is not None or spec.has_sinks:
            return True
        return span.num_rows > 1 and rows.dtype is torch.bfloat16 and rows.device.type == "cpu"


def _attend_to_shared(
    grouped: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, span: SequenceSpan
) -> torch.Tensor:
    """[n, kv_heads, group, head_dim] → [kv_heads, group, n, head_dim]."""
    shared = (keys.shape[0], grouped.shape[2], *keys.shape[1:])  # repeated without a copy: stride 0
    return F.scaled_dot_product_attention(
        grouped.permute(1, 2, 0, 3),
        keys[:, None].expand(shared),
        values[:, None].expand(shared),
        attn_mask=span.mask,
        is_causal=span.is_causal,
        scale=scale,
    )


def _mask(num_rows: int, num_keys: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """True where the last `num_rows` of `num_keys` positions may attend; None if that needs no mask.

    A single query sees all keys, as those before its window aren't read.
    """
    is_cut = window is not None and window < num_keys
    if num_rows == 1 or (num_rows == num_keys and not is_cut):
        return None
    visible = torch.ones(num_rows, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_rows)
    return visible.triu(num_keys - num_rows - window + 1) if is_cut and window is not None else visible


def are_consecutive(blocks: Sequence[int]) -> bool:
    """Whether the blocks are adjacent in the cache, in order: then attention needs no gathering."""
    first = blocks[0]
    return blocks[-1] - first == len(blocks) - 1 and all(
        block == first + index for index, block in enumerate(blocks)
    )
