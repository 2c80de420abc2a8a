"""Sleeping at both levels and waking up: memory and times, and the same tokens afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.gpu.machine import REHEARSES, synchronize
from benchmarks.gpu.shapes import SHAPES, Shape, decodes, make_model, make_runner, prefill
from benchmarks.gpu.table import print_table
from engine.core.sleep import ALL_PARTS
from engine.execution.runner import ModelRunner

_NUM_BLOCKS = 16 if REHEARSES else 4096


def main() -> None:
    for name, shape in SHAPES.items():
        print(f"\nQwen3-{name}\n")
        runner = _runner(shape)
        before = _tokens(runner)
        rows = [("awake", "", *_memory(runner))]
        for level in (1, 2):
            rows.append((f"asleep, level {level}", _timed(partial(runner.sleep, level)), *_memory(runner)))
            rows.append(("awake again", _timed(partial(runner.wake_up, ALL_PARTS)), *_memory(runner)))
            if (after := _tokens(runner)) != before:
                raise AssertionError(f"After level {level} the tokens are {after}, not {before}.")
        print_table(("state", "seconds", "GPU GiB", "weights", "KV cache", "host"), rows)
        print("The same tokens before and after each.\n")
        del runner
        if not REHEARSES:
            torch.cuda.empty_cache()


def _runner(shape: Shape) -> ModelRunner:
    """In a function of its own: the runner must have the only reference to the model."""
    return make_runner(make_model(shape), num_blocks=_NUM_BLOCKS, load=partial(make_model, shape))


def _tokens(runner: ModelRunner) -> list[Sequence[int]]:
    """Of a prompt, and of a decode that follows it."""
    return [*runner.execute(prefill(64)).tokens, *runner.execute(decodes(1, 65)).tokens]


def _timed(run: partial[None]) -> str:
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return f"{time.perf_counter() - started:.2f}"


def _memory(runner: ModelRunner) -> tuple[str, ...]:
    """What the GPU itself says is in use, then what the runner says."""
    free, total = (0, 0) if REHEARSES else torch.cuda.mem_get_info()
    memory = runner.memory
    used = (total - free, memory.weights, memory.kv_cache, memory.host_weights)
    return tuple(f"{size / 2**30:.2f}" for size in used)
