"""Paged attention equals plain attention, wherever the blocks lie, whatever is in the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from engine.core.batch import SequenceInput
from engine.models.attention.paged import AttentionShape, PagedKVCache, attend_in_slices
from engine.models.inputs import are_consecutive, build_inputs
from engine.models.native.kernels import find_kernels

CPU = torch.device("cpu")
BLOCK_SIZE = 4


def part(start: int, stop: int, blocks: Sequence[int], *, samples: bool = True) -> SequenceInput:
    return SequenceInput(range(start, stop), start, blocks, samples)


def written_out(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The last queries [n, heads, d] attend to keys and values [context, kv_heads, d]: [n, heads * d]."""
    num_rows, num_heads, head_dim = queries.shape
    group = num_heads // keys.shape[1]
    output = torch.zeros_like(queries)
    for row in range(num_rows):
        visible = keys.shape[0] - num_rows + row + 1
        for head in range(num_heads):
            scores = keys[:visible, head // group] @ queries[row, head] / math.sqrt(head_dim)
            output[row, head] = scores.softmax(0) @ values[:visible, head // group]
    return output.reshape(num_rows, -1)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_paged_attention_equals_plain_attention(num_heads: int, num_kv_heads: int) -> None:
    """Three steps of four sequences: first chunks, then later chunks, decodes and both side by side."""
    torch.manual_seed(0)
    shape = AttentionShape(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=8, num_layers=2)
    cache = PagedKVCache(shape, num_blocks=40, block_size=BLOCK_SIZE, dtype=torch.float32, device=CPU)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(math.nan)  # unwritten slots must never count
    tables = [[0, 1, 2, 3, 4], [20, 7, 9, 31, 8], [10, 11, 13, 14, 15], [39, 38, 37, 36, 35]]
    steps = [
        [(0, 0, 5), (1, 0, 1), (2, 0, 11)],
        [(0, 5, 6), (1, 1, 9), (2, 11, 12), (3, 0, 17)],
        [(3, 17, 18), (0, 6, 7), (1, 9, 10), (2, 12, 20)],
    ]
    stored = {
        layer: [(torch.randn(20, num_kv_heads, 8), torch.randn(20, num_kv_heads, 8)) for _ in tables]
        for layer in range(2)
    }
    for step in steps:
        inputs = build_inputs([part(a, b, tables[i]) for i, a, b in step], BLOCK_SIZE, CPU)
        for layer, sequences in stored.items():
            queries = torch.randn(len(inputs.token_ids), num_heads, 8)
            keys = torch.cat([sequences[i][0][a:b] for i, a, b in step])
            values = torch.cat([sequences[i][1][a:b] for i, a, b in step])
            cache.store(layer, keys, values, inputs)
            output = cache.attend(layer, queries, inputs)
            lengths = [b - a for _, a, b in step]
            expected = [
                written_out(rows, sequences[i][0][:stop], sequences[i][1][:stop])
                for rows, (i, _, stop) in zip(torch.split(queries, lengths), step, strict=True)
            ]
            torch.testing.assert_close(output, torch.cat(expected))


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize(("num_rows", "context"), [(1, 1), (64, 64), (65, 65), (130, 200), (3, 300)])
def test_attention_in_slices(num_rows: int, context: int, has_kernels: bool) -> None:
    torch.manual_seed(0)
    queries = torch.randn(num_rows, 6, 32).bfloat16()
    keys, values = torch.randn(2, context, 2, 32).bfloat16()
    grouped = queries.view(num_rows, 2, 3, 32).permute(1, 2, 0, 3)
    kernels = find_kernels("cpu", torch.bfloat16) if has_kernels else None
    output = attend_in_slices(grouped, keys.transpose(0, 1), values.transpose(0, 1), kernels)
    expected = written_out(queries.double(), keys.double(), values.double())
    actual = output.permute(2, 0, 1, 3).reshape(num_rows, -1).double()
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


def test_inputs_of_a_mixed_batch() -> None:
    inputs = build_inputs(
        [part(6, 7, [5, 2]), part(3, 6, [8, 9, 1], samples=False), part(0, 4, [3])], BLOCK_SIZE, CPU
    )
    assert inputs.token_ids.tolist() == [6, 3, 4, 5, 0, 1, 2, 3]
    assert inputs.positions.tolist() == [6, 3, 4, 5, 0, 1, 2, 3]
    assert inputs.slots.tolist() == [2 * 4 + 2, 8 * 4 + 3, 9 * 4, 9 * 4 + 1, 12, 13, 14, 15]
    assert inputs.sampled_rows is not None
    assert inputs.sampled_rows.tolist() == [0, 7]
    assert [(span.first_row, span.num_rows, span.context) for span in inputs.spans] == [
        (0, 1, 7),
        (1, 3, 6),
        (4, 4, 4),
    ]
    scattered, *together = (span.where for span in inputs.spans)
    assert isinstance(scattered, torch.Tensor)
    assert scattered.tolist() == [5, 2]
    assert together == [32, 12]  # the third block of the second sequence isn't in use yet


def test_decodes_alone_need_no_selection_of_rows() -> None:
    inputs = build_inputs([part(6, 7, [5, 2]), part(0, 1, [3])], BLOCK_SIZE, CPU)
    assert inputs.sampled_rows is None
    assert inputs.num_sampled == 2


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [([3], True), ([3, 4, 5], True), ([3, 5, 4], False), ([5, 4, 3], False), ([1, 9, 3], False)],
)
def test_are_consecutive(blocks: list[int], expected: bool) -> None:
    assert are_consecutive(blocks) is expected
