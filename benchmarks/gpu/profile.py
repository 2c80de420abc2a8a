"""One decode step under PyTorch's profiler: operators, kernels, and the time without any kernel."""

from __future__ import annotations

import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.shapes import BLOCK_SIZE, SHAPES, decodes, make_model, make_runner
from benchmarks.gpu.speed import CONTEXT, seconds_per_step
from benchmarks.gpu.table import print_table
from engine.core.batch import Batch
from engine.execution.runner import ModelRunner

STREAMS = (1, 64)
_STEPS = 3


def main() -> None:
    for name, shape in SHAPES.items():
        model = make_model(shape)
        runner = make_runner(model, num_blocks=STREAMS[-1] * CONTEXT // BLOCK_SIZE)
        for num_streams in STREAMS:
            print(f"\nQwen3-{name}, {num_streams} streams of {CONTEXT} tokens\n")
            _profile(runner, decodes(num_streams, CONTEXT))
        del model, runner
        torch.cuda.empty_cache()


def _profile(runner: ModelRunner, batch: Batch) -> None:
    step = seconds_per_step(runner, batch)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(_STEPS):
            runner.execute(batch)
        torch.cuda.synchronize()
    kernels: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    operators = 0
    for event in profiler.events() or []:
        if event.device_type.name == "CUDA":
            kernels[_short(event.name)] += event.device_time
            counts[_short(event.name)] += 1
        elif event.name.startswith("aten::"):
            operators += 1
    busy = kernels.total() / _STEPS / 1e3
    print(
        f"A step takes {step * 1e3:.2f} ms without the profiler; the GPU computes for {busy:.2f} ms of it "
        f"and waits for {step * 1e3 - busy:.2f} ms. "
        f"{operators // _STEPS} operators, {counts.total() // _STEPS} kernels.\n"
    )
    rows = [
        (
            name,
            counts[name] // _STEPS,
            f"{time_us / _STEPS / 1e3:.3f}",
            f"{time_us / _STEPS / 1e3 / busy:.0%}",
        )
        for name, time_us in kernels.most_common(14)
    ]
    print_table(("kernel", "launches", "ms", "share"), rows)
    print(f"Building the inputs: {_build_ms(runner, batch):.2f} ms.\n")


def _build_ms(runner: ModelRunner, batch: Batch) -> float:
    from engine.models.inputs import BlockReader, build_inputs

    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        before = time.perf_counter()
        build_inputs(batch, BLOCK_SIZE, torch.device("cuda"), reader=BlockReader.ALL)
        times.append(time.perf_counter() - before)
    return min(times) * 1e3


def _short(name: str) -> str:
    """A kernel's name without its template's arguments."""
    text = name.replace("void ", "").replace("|", "/")
    return text if len(text) <= 60 else f"{text[:57]}…"
