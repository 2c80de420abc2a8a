"""The GPU's kernels against PyTorch in float64, by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.models.activations import Activation
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import build_inputs
from engine.models.operators import TorchOperators
from tests.engine.test_attention import part, plain
from tests.engine.test_generation import core_of, greedy, run
from tests.engine.tiny_models import Reference, prompt_of

pytest.importorskip("triton")

from engine.models.triton_kernels.attention import TritonBackend
from engine.models.triton_kernels.layers import TritonOperators

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
OPERATORS = TritonOperators()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """`expected` in float64. The interpreter truncates to bfloat16 where a GPU rounds."""
    tolerance = 2.0**-7 if actual.dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


class Case:
    """Sequences at random places of a cache whose other slots are not a number."""

    def __init__(
        self,
        chunks: Sequence[tuple[int, int]],
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
    ) -> None:
        """`chunks`: for each sequence its first and its last position that run."""
        torch.manual_seed(0)
        num_blocks = sum(-(-stop // block_size) for _, stop in chunks) + 3
        free = torch.randperm(num_blocks).tolist()
        tables = [[free.pop() for _ in range(-(-stop // block_size))] for _, stop in chunks]
        self.slots = [
            (torch.tensor(table)[:, None] * block_size + torch.arange(block_size)).flatten()[:stop]
            for table, (_, stop) in zip(tables, chunks, strict=True)
        ]
        self.keys, self.values = torch.full((2, kv_heads, num_blocks * block_size, head_dim), torch.nan).to(
            dtype
        )
        for slots in self.slots:
            self.keys[:, slots] = torch.randn(kv_heads, len(slots), head_dim).to(dtype)
            self.values[:, slots] = torch.randn(kv_heads, len(slots), head_dim).to(dtype)
        self.num_rows = [stop - start for start, stop in chunks]
        wide = torch.randn(sum(self.num_rows), heads + 3, head_dim).mul(3).to(dtype)
        self.queries = wide[:, :heads]  # as between the projections: of a wider tensor
        self.out = torch.full((len(wide), heads * head_dim), torch.nan).to(dtype)
        batch = [part(a, b, table) for (a, b), table in zip(chunks, tables, strict=True)]
        self.inputs = build_inputs(batch, block_size, CPU)
        self.backend = TritonBackend(block_size, num_processors=2)
        self.spec = AttentionSpec(
            num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=head_dim**-0.5
        )

    def run(self, spec: AttentionSpec, sinks: torch.Tensor | None = None) -> None:
        assert self.backend.fits(spec)
        self.backend.attend(spec, self.queries, self.keys, self.values, self.inputs, None, sinks, self.out)

    def check(self, spec: AttentionSpec) -> None:
        sinks = torch.randn(spec.num_heads) if spec.has_sinks else None
        self.run(spec, sinks)
        rows = torch.split(self.queries, self.num_rows)
        expected = [
            plain(spec, q, self.keys[:, slots].transpose(0, 1), self.values[:, slots].transpose(0, 1), sinks)
            for q, slots in zip(rows, self.slots, strict=True)
        ]
        assert_close(self.out, torch.cat(expected))


# heads, kv_heads, head_dim, block_size, element type
SHAPES = [
    (4, 2, 32, 16, torch.float32),
    (4, 2, 32, 16, torch.bfloat16),
    (6, 2, 80, 4, torch.bfloat16),
    (5, 1, 64, 7, torch.float32),
    (3, 3, 128, 32, torch.float32),
    (24, 1, 16, 16, torch.float32),
]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size", "dtype"), SHAPES)
def test_attention_of_decodes(
    heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    """Some alone, some split over several programs, of which a short context leaves some without work."""
    for contexts in ([1, block_size, block_size + 1, 65], [400, 3]):
        case = Case(
            [(context - 1, context) for context in contexts],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            dtype=dtype,
        )
        case.check(case.spec)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size", "dtype"), SHAPES)
def test_attention_of_mixed_batches(
    heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    """Decodes, then prompts and later chunks in any order, of one token to several tiles."""
    long = 8 + (140 if dtype is torch.bfloat16 else 35) * kv_heads // heads
    case = Case(
        [(40, 41), (0, 1), (0, 2), (5, long), (64, 65), (65, 68), (0, long)],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
    )
    case.check(case.spec)


@pytest.mark.parametrize(
    ("window", "softcap", "has_sinks"),
    [(None, 2.0, False), (1, None, True), (17, 2.0, True), (300, None, False), (None, None, True)],
)
def test_windows_caps_and_sinks(window: int | None, softcap: float | None, has_sinks: bool) -> None:
    """A context that is split, too: the sink counts once."""
    case = Case(
        [(599, 600), (16, 17), (90, 130), (0, 20)],
        heads=4,
        kv_heads=2,
        head_dim=32,
        block_size=16,
        dtype=torch.float32,
    )
    case.check(replace(case.spec, scale=0.3, window=window, softcap=softcap, has_sinks=has_sinks))


def test_store() -> None:
    """Keys and values as a model has them, parts of a wider tensor; the last row only fills up the batch."""
    keys, values = torch.randn(2, 3, 4, 24)[:, :, 1:3].unbind()
    cached_keys, cached_values = torch.full((2, 2, 16, 24), torch.nan)
    inputs = build_inputs([part(2, 4, [3]), part(0, 1, [0])], 4, CPU)
    inputs.slots[2] = -1
    TritonBackend(4, num_processors=2).store(keys, values, cached_keys, cached_values, inputs)
    for cached, stored in ((cached_keys, keys), (cached_values, values)):
        assert torch.equal(cached[:, [14, 15]], stored[:2].transpose(0, 1))
        assert cached[:, :14].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize(("num_heads", "kv_heads", "head_dim"), [(4, 2, 32), (3, 1, 80), (1, 1, 2)])
def test_rotate_and_store(
    num_heads: int, kv_heads: int, head_dim: int, has_norm: bool, dtype: torch.dtype
) -> None:
    """The last row only fills up the batch: it is stored nowhere."""
    torch.manual_seed(0)
    slots = torch.tensor([63, 0, 17, 5, -1])
    heads = torch.randn(len(slots), num_heads + 2 * kv_heads, head_dim).to(dtype)
    weights = torch.randn(num_heads + kv_heads, head_dim).to(dtype) if has_norm else None
    cos, sin = torch.randn(2, len(slots), 1, head_dim).to(dtype)
    keys, values = torch.full((2, kv_heads, 64, head_dim), torch.nan).to(dtype)
    x = heads.double()
    turned = x[:, : num_heads + kv_heads]
    if weights is not None:
        turned = F.rms_norm(turned, (head_dim,), None, 1e-6) * weights.double()
    turned = turned * cos.double() + turned.roll(head_dim // 2, -1) * sin.double()
    queries = OPERATORS.rotate_and_store(heads, weights, cos, sin, slots, keys, values, eps=1e-6)
    assert_close(queries, turned[:, :num_heads])
    assert_close(keys[:, slots[:-1]], turned[:-1, num_heads:].transpose(0, 1))
    assert_close(values[:, slots[:-1]], x[:-1, -kv_heads:].transpose(0, 1))
    untouched = [slot for slot in range(64) if slot not in slots]
    assert keys[:, untouched].isnan().all() and values[:, untouched].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [100, 2560])
def test_add_and_normalise(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    residual, delta = torch.randn(2, 3, size).to(dtype)
    weight = torch.randn(size).to(dtype)
    before, added = residual.clone(), residual.double() + delta.double()
    alone = OPERATORS.add_and_normalise(residual, None, weight, eps=1e-5)
    assert_close(alone, F.rms_norm(before.double(), (size,), weight.double(), 1e-5))
    assert torch.equal(residual, before)
    both = OPERATORS.add_and_normalise(residual, delta, weight, eps=1e-5)
    assert_close(residual, added)
    assert_close(both, F.rms_norm(residual.double(), (size,), weight.double(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [100, 1500])
@pytest.mark.parametrize("activation", sorted(TritonOperators.activations))
def test_activate_and_multiply(size: int, dtype: torch.dtype, activation: Activation) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(3, 2 * size).mul(4).to(dtype)
    gate_up[0, :3] = torch.tensor([-60.0, 1000.0, 1e-3])
    expected = TorchOperators().activate_and_multiply(gate_up.double(), activation)
    assert_close(OPERATORS.activate_and_multiply(gate_up, activation), expected)


def test_nans_stay_nans() -> None:
    """A broken row must be seen as broken, and only that row."""
    case = Case([(2, 3), (0, 1)], heads=2, kv_heads=1, head_dim=16, block_size=4, dtype=torch.float32)
    case.queries[0, 1, 3] = torch.nan
    case.run(case.spec)
    x = torch.ones(2, 64)
    x[0, 3] = torch.nan
    normalised = OPERATORS.add_and_normalise(x.clone(), None, torch.ones(64), eps=1e-6)
    gated = OPERATORS.activate_and_multiply(x.clone(), "silu")
    assert case.out[0, 16:].isnan().all() and not case.out[0, :16].isnan().any()
    assert not case.out[1].isnan().any()
    assert normalised[0].isnan().all() and not normalised[1].isnan().any()
    assert gated[0, 3].isnan() and not gated[1].isnan().any()


def test_a_model_generates_the_same(checkpoint: Callable[[str], Path], triton_on_cpu: None) -> None:
    """A prompt in chunks beside decodes, as on a GPU."""
    prompts = {str(length): prompt_of(length) for length in (1, 3, 13)}
    reference = Reference(checkpoint("qwen3-tied"))
    expected = {key: reference.generate(prompt, 3) for key, prompt in prompts.items()}
    core = core_of(checkpoint("qwen3-tied"), max_num_batched_tokens=8)
    assert run(core, [greedy(key, prompt, 3) for key, prompt in prompts.items()]) == expected
