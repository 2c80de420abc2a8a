"""Milliseconds of the runner's steps, beside the time that the memory needs for what a step reads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks.gpu.machine import DEVICE, bytes_per_second
from benchmarks.gpu.shapes import (
    BLOCK_SIZE,
    CONTEXT,
    PREFILL,
    SHAPES,
    STREAMS,
    Shape,
    bytes_of_step,
    decodes,
    make_model,
    make_runner,
    prefill,
)
from benchmarks.gpu.table import print_table
from engine.core.batch import Batch
from engine.execution.runner import ModelRunner

_SECONDS = 1.5  # of measuring, at most, each


def seconds_per_step(runner: ModelRunner, batch: Batch) -> float:
    """The median; a step ends when its tokens are in main memory."""
    for _ in range(3):
        runner.execute(batch)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - started < _SECONDS and len(times) < 200):
        before = time.perf_counter()
        runner.execute(batch)
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def main() -> None:
    rate = bytes_per_second()
    print(f"bfloat16, contexts of {CONTEXT} tokens, {DEVICE}; memory {rate / 1e12:.2f} TB/s\n")
    head = ("step", "ms", "tokens/s", "memory's ms", "memory's share")
    for name, shape in SHAPES.items():
        print_table(head, _measure(name, shape, rate))


def _measure(name: str, shape: Shape, rate: float) -> Iterator[tuple[str, ...]]:
    model = make_model(shape)
    runner = make_runner(model, num_blocks=max(STREAMS[-1] * CONTEXT, 8 * PREFILL) // BLOCK_SIZE)
    for num_streams in STREAMS:
        step = seconds_per_step(runner, decodes(num_streams, CONTEXT))
        floor = bytes_of_step(model, num_streams, CONTEXT) / rate
        rates = (f"{num_streams / step:.0f}", f"{floor * 1e3:.2f}", f"{floor / step:.0%}")
        yield f"{name}, decode, {num_streams} streams", f"{step * 1e3:.2f}", *rates
    for start in (0, 7 * PREFILL):
        step = seconds_per_step(runner, prefill(PREFILL, start=start))
        yield f"{name}, prefill, after {start}", f"{step * 1e3:.2f}", f"{PREFILL / step:.0f}", "", ""
