"""Paged attention: with our kernels if there are any for the device, otherwise with PyTorch's own operators.

Layout: per layer one tensor for keys and one for values, [1, kv_heads, slots, head_dim], where a slot is
block * block_size + offset. A sequence with adjacent blocks is then a view, [1, kv_heads, context, head_dim],
which scaled-dot-product attention reads in place; only scattered blocks are gathered first.

Query heads that share a key-value head (GQA) are passed as further queries of that head, so that keys are
read once and not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.models.attention.block_kernels import find_block_kernels
from engine.models.inputs import BlockReader, SequenceSpan, StepInputs
from engine.models.native.kernels import Kernels, find_kernels
from engine.models.operators import Operators

# For attention in slices: 64 and 128 rows take the same time, 256 take longer.
_SLICE_ROWS = 64
_SLICE_SCORES = 1 << 24  # scores in memory at a time, 4 bytes each


@dataclass(frozen=True, slots=True)
class AttentionShape:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


class PagedKVCache:
    """The keys and values of all layers. Memory is reserved, and used only as blocks are written.

    How its device stores and attends is chosen once, here.
    """

    def __init__(
        self,
        shape: AttentionShape,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = device
        size = (1, shape.num_kv_heads, num_blocks * block_size, shape.head_dim)
        # Not zeroed: unwritten slots are never read, and on a CPU use no memory.
        self.keys = [torch.empty(size, dtype=dtype, device=device) for _ in range(shape.num_layers)]
        self.values = [torch.empty(size, dtype=dtype, device=device) for _ in range(shape.num_layers)]
        self._kernels = find_block_kernels(
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            block_size=block_size,
            dtype=dtype,
            device=device,
        )
        # Which sequences `attend` reads by block table: what the step's inputs must contain.
        self.reader = BlockReader.NONE if self._kernels is None else self._kernels.reader
        # Kernels that store keys and values as part of a larger pass; without them call `store`.
        self.operators: Operators | None = None if self._kernels is None else self._kernels.operators

    def tensors(self) -> list[torch.Tensor]:
        return [*self.keys, *self.values]

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor, inputs: StepInputs) -> None:
        """Write the step's keys and values, both [T, kv_heads, head_dim]."""
        self.keys[layer][0].index_copy_(1, inputs.slots, keys.transpose(0, 1))
        self.values[layer][0].index_copy_(1, inputs.slots, values.transpose(0, 1))

    def attend(self, layer: int, queries: torch.Tensor, inputs: StepInputs) -> torch.Tensor:
        """Attend each query to its sequence up to its own position; the step's keys and values are stored.

        queries [T, heads, head_dim] → [T, heads * head_dim].
        """
        keys, values = self.keys[layer], self.values[layer]
        output = queries.new_empty(queries.shape[0], self.shape.num_heads * self.shape.head_dim)
        if inputs.paged is not None and self._kernels is not None:
            self._kernels.attend(queries, keys[0], values[0], inputs.paged, output)
        for span in inputs.spans:
            k, v = self._read(keys, span), self._read(values, span)
            rows = slice(span.first_row, span.first_row + span.num_rows)
            attend = self._decode if span.num_rows == 1 else self._prefill
            output[rows] = attend(queries[rows], k, v)
        return output

    def _read(self, cached: torch.Tensor, span: SequenceSpan) -> torch.Tensor:
        """A sequence's keys or values: [1, kv_heads, context, head_dim]."""
        if isinstance(span.where, int):
            return cached.narrow(2, span.where, span.context)
        paged = cached.view(self.shape.num_kv_heads, self.num_blocks, -1)
        gathered = paged.index_select(1, span.where)
        return gathered.view(1, self.shape.num_kv_heads, -1, self.shape.head_dim).narrow(2, 0, span.context)

    def _decode(self, row: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """One query per head, [1, heads, head_dim] → [1, heads * head_dim]; needs no mask."""
        shape = self.shape
        grouped = row.reshape(1, shape.num_kv_heads, -1, shape.head_dim)  # GQA groups as queries
        attended = F.scaled_dot_product_attention(grouped, keys, values)
        return attended.reshape(1, -1)

    def _prefill(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Causal attention of a sequence's last n positions, [n, heads, head_dim] → [n, heads * head_dim]."""
        shape, num_rows, context = self.shape, rows.shape[0], keys.shape[2]
        group = shape.num_heads // shape.num_kv_heads
        grouped = rows.reshape(num_rows, shape.num_kv_heads, group, shape.head_dim).permute(1, 2, 0, 3)
        if rows.dtype is torch.bfloat16 and rows.device.type == "cpu":
            attended = attend_in_slices(
                grouped, keys[0], values[0], find_kernels(rows.device.type, rows.dtype)
            )
            return attended.permute(2, 0, 1, 3).reshape(num_rows, -1)
        shared = (shape.num_kv_heads, group, context, shape.head_dim)  # repeated without a copy: stride 0
        attended = F.scaled_dot_product_attention(
            grouped,
            keys.transpose(0, 1).expand(shared),
            values.transpose(0, 1).expand(shared),
            attn_mask=None if num_rows == context else _causal_mask(num_rows, context, rows.device),
            is_causal=num_rows == context,
        )  # [kv_heads, group, n, head_dim]
        return attended.permute(2, 0, 1, 3).reshape(num_rows, -1)


def attend_in_slices(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kernels: Kernels | None
) -> torch.Tensor:
    """Causal attention as two products per slice of rows, the softmax in float32.

    For bfloat16 on a CPU, where it takes less than half the time of PyTorch's fused operator. The scores are
    rounded to bfloat16 in between, as in unfused attention.

    queries [kv_heads, group, n, head_dim] of the last n positions, keys and values [kv_heads, context,
    head_dim] → as queries.
    """
    kv_heads, group, num_rows, head_dim = queries.shape
    before = keys.shape[1] - num_rows
    size = max(1, min(_SLICE_ROWS, _SLICE_SCORES // (kv_heads * group * keys.shape[1])))
    output = torch.empty_like(queries, memory_format=torch.contiguous_format)
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        rows, visible = stop - start, before + stop
        sliced = queries[:, :, start:stop].reshape(kv_heads, group * rows, head_dim)
        scores = torch.bmm(sliced, keys[:, :visible].transpose(1, 2))
        if kernels is None:
            scores = _causal_softmax(scores, rows, head_dim**-0.5)
        else:
            kernels.causal_softmax(scores.view(-1, rows, visible), scale=head_dim**-0.5)
        attended = torch.bmm(scores, values[:, :visible])
        output[:, :, start:stop] = attended.view(kv_heads, group, rows, head_dim)
    return output


def _causal_softmax(scores: torch.Tensor, num_rows: int, scale: float) -> torch.Tensor:
    """softmax(scale * scores) of scores [M, group * num_rows, columns]; the last row sees all columns."""
    wide = scores.float().mul_(scale).view(scores.shape[0], -1, num_rows, scores.shape[-1])
    hidden = torch.ones(num_rows, num_rows, dtype=torch.bool).triu(1)
    wide[..., -num_rows:].masked_fill_(hidden, -torch.inf)
    return wide.softmax(dim=-1).to(scores.dtype).view_as(scores)


def _causal_mask(num_rows: int, context: int, device: torch.device) -> torch.Tensor:
    """True where the last `num_rows` positions of a context may attend: bool [num_rows, context]."""
    visible = torch.ones(num_rows, context, dtype=torch.bool, device=device)
    return visible.tril(diagonal=context - num_rows)
