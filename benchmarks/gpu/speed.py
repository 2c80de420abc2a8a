"""Steps a second of the runner, beside the time that the GPU's memory needs for what a step reads."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.gpu.machine import bytes_per_second
from benchmarks.gpu.shapes import BLOCK_SIZE, SHAPES, bytes_of_step, decodes, make_model, make_runner, prefill
from benchmarks.gpu.table import print_table
from engine.core.batch import Batch
from engine.execution.runner import ModelRunner

CONTEXT = 1024
STREAMS = (1, 32, 256)
_SECONDS = 1.5  # of measuring, at most, each


def seconds_per_step(runner: ModelRunner, batch: Batch) -> float:
    """The median; a step ends when its tokens are in main memory."""
    started = time.perf_counter()
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
    torch.cuda.empty_cache()
    for name, shape in SHAPES.items():
        model = make_model(shape)
        runner = make_runner(model, num_blocks=STREAMS[-1] * CONTEXT // BLOCK_SIZE)
        print(f"Qwen3-{name}, bfloat16, contexts of {CONTEXT} tokens; memory {rate / 1e12:.2f} TB/s\n")
        rows = []
        for num_streams in STREAMS:
            step = seconds_per_step(runner, decodes(num_streams, CONTEXT))
            floor = bytes_of_step(model, num_streams, CONTEXT) / rate
            rows.append(
                (
                    f"decode, {num_streams} streams",
                    f"{step * 1e3:.2f}",
                    f"{1 / step:.0f}",
                    f"{num_streams / step:.0f}",
                    f"{floor * 1e3:.2f}",
                    f"{floor / step:.0%}",
                )
            )
        for start in (0, 14336):
            step = seconds_per_step(runner, prefill(2048, start=start))
            rows.append(
                (
                    f"prefill, 2048 after {start}",
                    f"{step * 1e3:.2f}",
                    f"{1 / step:.0f}",
                    f"{2048 / step:.0f}",
                    "",
                    "",
                )
            )
        print_table(("step", "ms", "steps/s", "tokens/s", "memory's ms", "share"), rows)
        del model, runner
        torch.cuda.empty_cache()
