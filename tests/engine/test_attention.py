"""Paged attention equals plain attention, wherever the blocks lie, whatever is in the batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from engine.core.batch import SequenceInput
from engine.models.attention.paged import PagedKVCache
from engine.models.attention.sdpa import SdpaBackend, are_consecutive
from engine.models.attention.slices import attend_in_slices
from engine.models.attention.spec import AttentionSpec, bytes_per_token
from engine.models.inputs import build_inputs
from engine.models.native.kernels import find_kernels

CPU = torch.device("cpu")
BLOCK_SIZE = 4


def part(start: int, stop: int, blocks: Sequence[int], *, samples: bool = True) -> SequenceInput:
    return SequenceInput(range(start, stop), start, blocks, samples)


def plain(
    spec: AttentionSpec,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The last queries [n, heads, d] of keys and values [context, kv_heads, d]: float64 [n, heads * d]."""
    num_rows, context = len(queries), len(keys)
    group = spec.num_heads // spec.num_kv_heads
    k, v = (x.double().repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("nhd,chd->hnc", queries.double(), k) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    row, column = torch.arange(context - num_rows, context)[:, None], torch.arange(context)
    hidden = column > row
    if spec.window is not None:
        hidden |= column <= row - spec.window
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        sink = sinks.double().view(-1, 1, 1).expand(-1, num_rows, 1)
        scores = torch.cat((scores, sink), -1)
    weights = scores.softmax(-1)[..., :context]
    return torch.einsum("hnc,chd->nhd", weights, v).reshape(num_rows, -1)


_HEADS = [(4, 4, 8), (6, 2, 32), (4, 1, 20), (2, 1, 64)]  # heads, kv_heads, head_dim


def all_specs(*windows: int | None) -> list[AttentionSpec]:
    """Layers of one model that differ in everything."""
    options = itertools.product(windows, (None, 1.5), (False, True))
    return [
        AttentionSpec(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            scale=1.3 * dim**-0.5,
            window=window,
            softcap=softcap,
            has_sinks=has_sinks,
        )
        for (window, softcap, has_sinks), (heads, kv_heads, dim) in zip(
            options, itertools.cycle(_HEADS), strict=False
        )
    ]


# Triton's interpreter takes its time; test_triton_kernels.py has its cases that always run.
@pytest.fixture(params=["pytorch", "native", pytest.param("triton", marks=pytest.mark.exhaustive)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "pytorch":
        monkeypatch.setattr("engine.models.attention.backend.find_kernels", lambda *_: None)
    elif name == "triton":
        request.getfixturevalue("triton_on_cpu")
    return name


class Layers:
    """A cache whose unwritten slots are not a number, and what was written to it, by layer and sequence."""

    def __init__(
        self, specs: Sequence[AttentionSpec], dtype: torch.dtype, tables: Sequence[list[int]], length: int
    ) -> None:
        torch.manual_seed(0)
        self.specs, self.dtype, self.tables = specs, dtype, tables
        self.cache = PagedKVCache(specs, num_blocks=80, block_size=BLOCK_SIZE, dtype=dtype, device=CPU)
        for tensor in self.cache.tensors():
            tensor.fill_(math.nan)
        self.stored = [
            torch.randn(len(tables), 2, length, spec.num_kv_heads, spec.head_dim).to(dtype) for spec in specs
        ]
        self.sinks = [torch.randn(spec.num_heads) if spec.has_sinks else None for spec in specs]

    def check(self, step: Sequence[tuple[int, int, int]]) -> None:
        """`step`: sequences by index, with the first and the last position that run."""
        for layer, (spec, stored, sinks) in enumerate(zip(self.specs, self.stored, self.sinks, strict=True)):
            parts = [part(a, b, self._table(i, a, spec.window)) for i, a, b in step]
            inputs = build_inputs(parts, BLOCK_SIZE, CPU)
            wide = torch.randn(len(inputs.token_ids), spec.num_heads + 2, spec.head_dim).to(self.dtype)
            queries = wide[:, : spec.num_heads]  # of a wider tensor, as between the projections
            keys, values = (torch.cat([stored[i, kind, a:b] for i, a, b in step]) for kind in (0, 1))
            self.cache.store(layer, keys, values, inputs)
            output = self.cache.attend(layer, queries, inputs, sinks)
            rows = torch.split(queries, [b - a for _, a, b in step])
            expected = torch.cat(
                [
                    plain(spec, q, stored[i, 0, :b], stored[i, 1, :b], sinks)
                    for q, (i, _, b) in zip(rows, step, strict=True)
                ]
            )
            tolerance = 1e-5 if self.dtype is torch.float32 else 2e-2
            torch.testing.assert_close(
                output.double(), expected, rtol=tolerance, atol=tolerance, msg=f"differs for {spec}"
            )

    def _table(self, sequence: int, start: int, window: int | None) -> list[int]:
        """Blocks behind the window are no longer the sequence's."""
        table = self.tables[sequence]
        num_freed = 0 if window is None else max(0, start - window + 1) // BLOCK_SIZE
        return [_FREED] * num_freed + table[num_freed:]


_FREED = 79
_TABLES = [[0, 1, 2, 3, 4], [20, 7, 9, 31, 8], [10, 11, 13, 14, 15], [39, 38, 37, 36, 35]]
_STEPS = [
    [(0, 0, 5), (1, 0, 1), (2, 0, 11)],
    [(0, 5, 6), (1, 1, 9), (2, 11, 12), (3, 0, 17)],
    [(3, 17, 18), (0, 6, 7), (1, 9, 10), (2, 12, 20)],
    [(3, 18, 19), (0, 7, 8)],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_paged_attention_equals_plain_attention(backend: str, dtype: torch.dtype) -> None:
    """Four steps of four sequences: first chunks, then later chunks, decodes and both side by side."""
    specs = all_specs(None, 1, 6)
    if backend == "triton" and dtype is torch.bfloat16:  # the interpreter takes its time
        specs = specs[::3]
    layers = Layers(specs, dtype, _TABLES, 20)
    for step in _STEPS:
        layers.check(step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_prompts_and_contexts(backend: str, dtype: torch.dtype) -> None:
    """Of more rows than a slice or a tile has, with windows within and beyond them."""
    tables = [list(range(40)), torch.randperm(38).add(40).tolist()]
    layers = Layers(all_specs(None, 30, 100)[:: 3 if backend == "triton" else 1], dtype, tables, 150)
    for step in ([(0, 0, 70), (1, 0, 65)], [(0, 70, 149)], [(0, 149, 150), (1, 65, 140)]):
        layers.check(step)


def test_layers_that_share_memory_attend_to_their_own_keys() -> None:
    """As pooling has it: whole sequences, each layer's keys used before the next writes its own."""
    spec = all_specs(None)[0]
    cache = PagedKVCache(
        [spec, spec], num_blocks=4, block_size=BLOCK_SIZE, dtype=torch.float32, device=CPU, shares_memory=True
    )
    assert cache.keys[0] is cache.keys[1] and cache.values[0] is cache.values[1]
    assert cache.keys[0] is not cache.values[0]
    inputs = build_inputs([part(0, 9, [1, 3, 0])], BLOCK_SIZE, CPU)
    for layer in (0, 1):
        queries, keys, values = torch.randn(3, 9, spec.num_heads, spec.head_dim)
        cache.store(layer, keys, values, inputs)
        torch.testing.assert_close(
            cache.attend(layer, queries, inputs), plain(spec, queries, keys, values, None).float()
        )


def test_sinks_are_given_exactly_where_a_layer_has_them() -> None:
    without, with_sinks = all_specs(None)[:2]
    cache = PagedKVCache(
        [without, with_sinks], num_blocks=4, block_size=BLOCK_SIZE, dtype=torch.float32, device=CPU
    )
    inputs = build_inputs([part(0, 1, [1])], BLOCK_SIZE, CPU)
    for layer, sinks in ((0, torch.zeros(4)), (1, None)):
        spec = cache.specs[layer]
        with pytest.raises(ValueError, match=f"Layer {layer}: sinks"):
            cache.attend(layer, torch.zeros(1, spec.num_heads, spec.head_dim), inputs, sinks)


def test_layers_that_a_kernel_does_not_fit_run_on_pytorch(backend: str) -> None:
    """Heads of an odd size, beside layers that the kernel runs."""
    wide, odd = (
        AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=dim, scale=0.2, window=7) for dim in (32, 33)
    )
    layers = Layers([wide, odd], torch.float32, _TABLES, 20)
    assert [one.fits(odd) for one in layers.cache._backends] == [backend == "pytorch", True]
    for step in _STEPS:
        layers.check(step)


def test_bytes_per_token_are_the_sum_over_layers() -> None:
    specs = all_specs(None)  # (4, 8), (2, 32), (1, 20), (1, 64): kv_heads, head_dim
    assert bytes_per_token(specs, 2) == 2 * 2 * (4 * 8 + 2 * 32 + 20 + 64)


def test_a_step_is_planned_once_for_each_window() -> None:
    inputs = build_inputs([part(6, 7, [5, 2])], BLOCK_SIZE, CPU)
    one, other = SdpaBackend(BLOCK_SIZE), SdpaBackend(BLOCK_SIZE)
    assert inputs.plan(one, None) is inputs.plan(other, None)
    assert inputs.plan(one, None) is not inputs.plan(one, 3)


@pytest.mark.parametrize("window", [None, 1, 70])
@pytest.mark.parametrize(("num_rows", "context"), [(1, 1), (64, 64), (65, 65), (130, 200), (3, 300)])
@pytest.mark.parametrize("has_kernels", [True, False])
def test_attention_in_slices(has_kernels: bool, num_rows: int, context: int, window: int | None) -> None:
    torch.manual_seed(0)
    queries = torch.randn(num_rows, 6, 32).bfloat16()
    keys, values = torch.randn(2, context, 2, 32).bfloat16()
    grouped = queries.view(num_rows, 2, 3, 32).permute(1, 2, 0, 3)
    kernels = find_kernels("cpu", torch.bfloat16) if has_kernels else None
    spec = AttentionSpec(num_heads=6, num_kv_heads=2, head_dim=32, scale=32**-0.5, window=window)
    output = attend_in_slices(grouped, keys.transpose(0, 1), values.transpose(0, 1), spec, kernels=kernels)
    actual = output.permute(2, 0, 1, 3).reshape(num_rows, -1).double()
    torch.testing.assert_close(actual, plain(spec, queries, keys, values, None), rtol=2e-2, atol=2e-2)


def test_products_beyond_float16_are_scaled_first() -> None:
    """Layers with a cap write their scores out; float16 ends at 65504."""
    spec = AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=64, scale=1 / 4096, softcap=50.0)
    queries, keys, values = torch.full((3, 2, 1, 64), 100.0).half()
    output = attend_in_slices(
        queries.permute(1, 0, 2)[:, None], keys.transpose(0, 1), values.transpose(0, 1), spec, kernels=None
    )
    assert torch.equal(output, torch.full((1, 1, 2, 64), 100.0).half())


def test_inputs_of_a_mixed_batch() -> None:
    inputs = build_inputs(
        [part(6, 7, [5, 2]), part(3, 6, [8, 9, 1], samples=False), part(0, 4, [3])], BLOCK_SIZE, CPU
    )
    assert inputs.token_ids.tolist() == [6, 3, 4, 5, 0, 1, 2, 3]
    assert inputs.positions.tolist() == [6, 3, 4, 5, 0, 1, 2, 3]
    assert inputs.slots.tolist() == [2 * 4 + 2, 8 * 4 + 3, 9 * 4, 9 * 4 + 1, 12, 13, 14, 15]
    assert inputs.sampled_rows is not None
    assert inputs.sampled_rows.tolist() == [0, 7]
    assert inputs.first_rows.tolist() == [0, 1, 4, 8]
    assert inputs.contexts.tolist() == [7, 6, 4]
    assert inputs.starts.tolist() == [0, 2, 5]
    assert inputs.blocks.tolist() == [5, 2, 8, 9, 1, 3]
    assert (inputs.num_sequences, inputs.num_decodes, inputs.max_context) == (3, 1, 7)
    spans = SdpaBackend(BLOCK_SIZE).plan(inputs, None)
    assert [(span.rows, span.num_keys) for span in spans] == [
        (slice(0, 1), 7),
        (slice(1, 4), 6),
        (slice(4, 8), 4),
    ]
    scattered, *together = spans
    assert scattered.blocks is not None
    assert scattered.blocks.tolist() == [5, 2]
    assert all(span.blocks is None for span in together)
    # The third block of the second sequence isn't in use yet.
    assert [span.first_slot for span in spans] == [0, 32, 12]


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
