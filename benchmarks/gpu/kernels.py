"""Our kernels against float64 on the device, over shapes, and their share of what the GPU can do."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.gpu.machine import (
    DEVICE,
    REHEARSES,
    bytes_per_second,
    milliseconds,
    num_processors,
    operations_per_second,
)
from benchmarks.gpu.table import print_table
from engine.core.batch import SequenceInput
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import build_inputs
from engine.models.triton_kernels.attention import TritonBackend
from engine.models.triton_kernels.layers import TritonOperators

_TOLERANCES = {torch.bfloat16: 4e-3, torch.float32: 2e-6, torch.float16: 6e-4}  # of norms
if REHEARSES:  # the interpreter truncates to bfloat16
    _TOLERANCES = {torch.bfloat16: 1e-2, torch.float32: 2e-6}
# Sequences by the first and last position that run.
_BATCHES = {
    "decodes": [(n - 1, n) for n in (1, 15, 16, 17, 64, 65, 300, 1000, 4097)],
    "two long decodes": [(9999, 10000), (2, 3)],
    "mixed": [(40, 41), (0, 1), (1999, 2000), (0, 2), (5, 140), (64, 65), (128, 131), (0, 300), (700, 829)],
    "one prompt": [(0, 1025)],
}
if REHEARSES:
    _BATCHES = {"mixed": [(40, 41), (0, 1), (0, 2), (5, 30), (64, 65)]}


@dataclass(frozen=True)
class Heads:
    queries: int
    keys: int
    dim: int
    block_size: int


_COMMON = Heads(16, 8, 128, 16)
_UNUSUAL = (
    Heads(32, 8, 128, 16),
    Heads(5, 1, 64, 7),
    Heads(4, 4, 80, 32),
    Heads(24, 1, 96, 16),
    Heads(8, 2, 256, 16),
    Heads(4, 2, 16, 1),
)
_ROWS_AND_SIZES = ((2, 100),) if REHEARSES else ((1, 1024), (7, 4096), (300, 5120), (64, 100))
_TIMED = Heads(4, 2, 32, 16) if REHEARSES else Heads(32, 8, 128, 16)
_TIMED_DECODES = ((1, 64),) if REHEARSES else ((1, 1024), (1, 32768), (32, 1024), (32, 8192), (256, 1024))
_TIMED_PREFILLS = ((16, 8),) if REHEARSES else ((2048, 0), (8192, 0), (2048, 14336), (512, 32256))


@dataclass
class Case:
    """Sequences, given by first and last position that run, at random places of a cache."""

    chunks: Sequence[tuple[int, int]]
    heads: Heads
    dtype: torch.dtype
    poisons: bool = True  # slots that nothing was written to are not a number

    def __post_init__(self) -> None:
        size = self.heads.block_size
        counts = [-(-stop // size) for _, stop in self.chunks]
        free = random.sample(range(sum(counts) + 2), sum(counts))
        tables = [[free.pop() for _ in range(count)] for count in counts]
        shape = (2, self.heads.keys, (sum(counts) + 2) * size, self.heads.dim)
        offsets = torch.arange(size, device=DEVICE)
        self.slots = [
            (torch.tensor(table, device=DEVICE)[:, None] * size + offsets).flatten()[:stop]
            for table, (_, stop) in zip(tables, self.chunks, strict=True)
        ]
        cached = torch.randn(shape, device=DEVICE, dtype=self.dtype)
        if self.poisons:
            written = torch.zeros(shape[2], dtype=torch.bool, device=DEVICE)
            written[torch.cat(self.slots)] = True
            cached[:, :, ~written] = torch.nan
        self.keys, self.values = cached
        self.num_rows = [stop - start for start, stop in self.chunks]
        wide = torch.randn(
            sum(self.num_rows), self.heads.queries + 2 * self.heads.keys, self.heads.dim, device=DEVICE
        )
        self.queries = wide.mul(2).to(self.dtype)[:, : self.heads.queries]
        self.out = torch.full((len(wide), self.heads.queries * self.heads.dim), torch.nan, device=DEVICE).to(
            self.dtype
        )
        sequences = [_sequence(a, b, table) for (a, b), table in zip(self.chunks, tables, strict=True)]
        self.inputs = build_inputs(sequences, size, DEVICE)
        self.backend = TritonBackend(size, num_processors())

    def spec(self, *, window: int | None = None, softcap: float | None = None) -> AttentionSpec:
        return AttentionSpec(
            num_heads=self.heads.queries,
            num_kv_heads=self.heads.keys,
            head_dim=self.heads.dim,
            scale=self.heads.dim**-0.5,
            window=window,
            softcap=softcap,
        )

    def run(self, spec: AttentionSpec, backend: TritonBackend | None = None) -> torch.Tensor:
        (backend or self.backend).attend(
            spec, self.queries, self.keys, self.values, self.inputs, None, None, self.out
        )
        return self.out

    def error(self, spec: AttentionSpec) -> float:
        """Relative, of the norm; not a number counts as infinite."""
        self.out.fill_(torch.nan)
        actual = self.run(spec).double()
        expected = torch.cat(
            [
                _attended(q, self.keys[:, slots], self.values[:, slots], spec)
                for q, slots in zip(torch.split(self.queries, self.num_rows), self.slots, strict=True)
            ]
        )
        error = float((actual - expected).norm() / expected.norm())
        return error if error == error else float("inf")


def _sequence(start: int, stop: int, table: list[int]) -> SequenceInput:
    return SequenceInput([0] * (stop - start), start, table, samples=True)


def _attended(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, spec: AttentionSpec
) -> torch.Tensor:
    num_rows, context = len(queries), keys.shape[1]
    group = spec.num_heads // spec.num_kv_heads
    k, v = (cached.double().repeat_interleave(group, 0) for cached in (keys, values))
    scores = torch.einsum("nhd,hcd->hnc", queries.double(), k) * spec.scale
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    row = torch.arange(context - num_rows, context, device=DEVICE)[:, None]
    column = torch.arange(context, device=DEVICE)
    hidden = column > row
    if spec.window:
        hidden |= column <= row - spec.window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hnc,hcd->nhd", weights, v).reshape(num_rows, -1)


def main() -> None:
    torch.manual_seed(0)
    random.seed(0)
    failures: list[str] = []
    print_table(("attention", "cases", "largest relative error"), _check_attention(failures))
    print_table(("layer", "largest relative error"), _check_layers(failures))
    print_table(("attention of one layer, 32 over 8 heads of 128", "ms", "rate", "share"), _time_attention())
    if failures:
        print("Failures:\n\n- " + "\n- ".join(failures))
        sys.exit(1)


def _check_attention(failures: list[str]) -> Iterator[tuple[object, ...]]:
    for dtype, tolerance in _TOLERANCES.items():
        for name, chunks in _BATCHES.items():
            errors = {}
            for heads, window, softcap in _variants(dtype):
                what = f"{name}, {dtype}, {heads}, window {window}, softcap {softcap}"
                try:
                    case = Case(chunks, heads, dtype)
                    errors[what] = case.error(case.spec(window=window, softcap=softcap))
                except Exception as error:  # one that can't be compiled: the others are checked all the same
                    errors[what] = float("inf")
                    failures.append(f"{what}: {type(error).__name__}: {str(error).strip()[:200]}")
            failures += [f"{what}: {error:.1e}" for what, error in errors.items() if not error <= tolerance]
            yield f"{name}, {str(dtype).removeprefix('torch.')}", len(errors), f"{max(errors.values()):.1e}"


def _variants(dtype: torch.dtype) -> list[tuple[Heads, int | None, float | None]]:
    """Heads, window, softcap: most in bfloat16, the usual element type."""
    if REHEARSES:
        return [(Heads(4, 2, 32, 16), None, None)]
    plain: list[tuple[Heads, int | None, float | None]] = [
        (_COMMON, None, None),
        (Heads(6, 2, 32, 16), None, None),
    ]
    if dtype is torch.float16:
        return plain
    unusual = _UNUSUAL if dtype is torch.bfloat16 else ()
    return [*plain, (_COMMON, 100, None), (_COMMON, None, 5.0), *((heads, None, None) for heads in unusual)]


def _check_layers(failures: list[str]) -> Iterator[tuple[object, ...]]:
    operators = TritonOperators()
    for dtype, tolerance in _TOLERANCES.items():
        errors = dict.fromkeys(("add and normalise", "silu and multiply", "rotate and store"), 0.0)
        for rows, size in _ROWS_AND_SIZES:
            x, delta = torch.randn(2, rows, size, device=DEVICE, dtype=dtype)
            weight = torch.randn(size, device=DEVICE, dtype=dtype)
            out = operators.add_and_normalise(x, delta, weight, eps=1e-6)
            expected = F.rms_norm(x.double(), (size,), weight.double(), 1e-6)
            errors["add and normalise"] = max(errors["add and normalise"], _error(out, expected))
            wide = torch.randn(rows, 2 * size, device=DEVICE, dtype=dtype).mul_(3)
            gate, up = wide.double().chunk(2, -1)
            gated = operators.activate_and_multiply(wide, "silu")
            errors["silu and multiply"] = max(errors["silu and multiply"], _error(gated, F.silu(gate) * up))
        for heads, kv_heads, dim in ((16, 8, 128), (3, 1, 80), (32, 8, 64)):
            error = _rotation_error(operators, heads, kv_heads, dim, dtype)
            errors["rotate and store"] = max(errors["rotate and store"], error)
        for name, error in errors.items():
            yield f"{name}, {str(dtype).removeprefix('torch.')}", f"{error:.1e}"
            if not error <= tolerance:
                failures.append(f"{name}, {dtype}: {error:.1e}")


def _rotation_error(
    operators: TritonOperators, num_heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> float:
    rows = 7 if REHEARSES else 33
    heads = torch.randn(rows, num_heads + 2 * kv_heads, dim, device=DEVICE, dtype=dtype)
    weights = torch.randn(num_heads + kv_heads, dim, device=DEVICE, dtype=dtype)
    cos, sin = torch.randn(2, rows, 1, dim, device=DEVICE, dtype=dtype)
    keys, values = torch.zeros(2, kv_heads, 64, dim, device=DEVICE, dtype=dtype)
    slots = torch.randperm(64, device=DEVICE)[:rows]
    x = heads.double()
    turned = F.rms_norm(x[:, : num_heads + kv_heads], (dim,), None, 1e-6) * weights.double()
    turned = turned * cos.double() + turned.roll(dim // 2, -1) * sin.double()
    operators.rotate_and_store(heads, weights, cos, sin, slots, keys, values, eps=1e-6)
    return max(
        _error(heads[:, :num_heads], turned[:, :num_heads]),
        _error(keys[:, slots], turned[:, num_heads:].transpose(0, 1)),
        _error(values[:, slots], x[:, -kv_heads:].transpose(0, 1)),
    )


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    error = float((actual.double() - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def _time_attention() -> Iterator[tuple[object, ...]]:
    heads = _TIMED
    bandwidth, arithmetic = bytes_per_second(), operations_per_second()
    for num_streams, context in _TIMED_DECODES:
        case = Case([(context - 1, context)] * num_streams, heads, torch.bfloat16, poisons=False)
        spec = case.spec()
        time_ms = milliseconds(lambda: case.run(spec), repeat=30)  # noqa: B023
        rate = num_streams * context * 2 * heads.keys * heads.dim * 2 / time_ms * 1e3
        splits = case.backend.num_splits(spec, num_streams, context)
        name = f"decode, {num_streams} × {context}, {splits} splits"
        yield name, f"{time_ms:.3f}", f"{rate / 1e12:.2f} TB/s", f"{rate / bandwidth:.0%}"
    for rows, before in _TIMED_PREFILLS:
        case = Case([(before, before + rows)], heads, torch.bfloat16, poisons=False)
        spec = case.spec()
        time_ms = milliseconds(lambda: case.run(spec), repeat=20)  # noqa: B023
        rate = 4 * heads.queries * heads.dim * rows * (before + rows / 2) / time_ms * 1e3
        yield (
            f"prefill, {rows} after {before}",
            f"{time_ms:.3f}",
            f"{rate / 1e12:.0f} TFLOP/s",
            f"{rate / arithmetic:.0%}",
        )
