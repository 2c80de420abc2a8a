"""One decode step under PyTorch's profiler: operators, kernels, and the time without any kernel."""

from __future__ import annotations

from collections import Counter

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.machine import REHEARSES, synchronize
from benchmarks.gpu.shapes import BLOCK_SIZE, CONTEXT, SHAPES, decodes, make_model, make_runner
from benchmarks.gpu.speed import seconds_per_step
from benchmarks.gpu.table import print_table
from engine.core.batch import Batch
from engine.execution.runner import ModelRunner

_STREAMS = (1, 4) if REHEARSES else (1, 64)
_STEPS = 3


def main() -> None:
    name, shape = next(iter(SHAPES.items()))
    runner = make_runner(make_model(shape), num_blocks=_STREAMS[-1] * CONTEXT // BLOCK_SIZE)
    for num_streams in _STREAMS:
        print(f"\nQwen3-{name}, {num_streams} streams of {CONTEXT} tokens\n")
        _profile(runner, decodes(num_streams, CONTEXT))


def _profile(runner: ModelRunner, batch: Batch) -> None:
    step_ms = seconds_per_step(runner, batch) * 1e3
    activities = [ProfilerActivity.CPU, *([] if REHEARSES else [ProfilerActivity.CUDA])]
    with profile(activities=activities) as profiler:
        for _ in range(_STEPS):
            runner.execute(batch)
        synchronize()
    kernels: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    operators = 0
    for event in profiler.events() or []:
        if event.device_type.name == "CUDA":
            kernels[_short(event.name)] += event.device_time
            counts[_short(event.name)] += 1
        elif event.name.startswith("aten::"):
            operators += 1
    busy_ms = kernels.total() / _STEPS / 1e3
    print(
        f"A step takes {step_ms:.2f} ms without the profiler; the GPU computes for {busy_ms:.2f} ms of it. "
        f"{operators // _STEPS} operators, {counts.total() // _STEPS} kernels.\n"
    )
    rows = [
        (name, counts[name] // _STEPS, f"{time_us / _STEPS / 1e3:.3f}", f"{time_us / kernels.total():.0%}")
        for name, time_us in kernels.most_common(14)
    ]
    print_table(("kernel", "launches", "ms", "share"), rows)


def _short(name: str) -> str:
    """A kernel's name without its template's arguments."""
    text = name.replace("void ", "").replace("|", "/")
    return text if len(text) <= 60 else f"{text[:57]}…"
