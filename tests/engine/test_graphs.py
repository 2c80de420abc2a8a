"""Recorded decode steps, by a recorder that runs the step again on the same memory, as a graph would."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.batch import Batch
from engine.core.sleep import ALL_PARTS
from engine.execution.graphs import Run
from engine.execution.runner import ModelRunner
from tests.engine.test_models import chunk, runner_of
from tests.engine.tiny_models import Reference, prompt_of

pytest.importorskip("triton")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The Triton kernels on the CPU; one entry per recording."""
    for module in ("operators", "attention.block_kernels"):
        monkeypatch.setattr(f"engine.models.{module}.has_triton", lambda device_type: True)
    return []


def recording(path: Path, recorded: list[int]) -> ModelRunner:
    def record(run: Run) -> Run:
        recorded.append(len(run()))
        return run

    return runner_of(path, record=lambda: record)


def test_decodes_are_replayed_with_rows_to_spare(
    checkpoint: Callable[[str], Path], recorded: list[int]
) -> None:
    """Three sequences take the graph of four rows; their prompts run without a graph."""
    path = checkpoint("qwen3-tied")
    runner = recording(path, recorded)
    prompts = [prompt_of(length) for length in (1, 9, 20)]
    blocks = [range(3), range(20, 24), range(10, 18)]
    tokens = [list(prompt) for prompt in prompts]
    runner.execute(
        Batch([chunk(p, 0, len(p) - 1, b) for p, b in zip(prompts, blocks, strict=True) if len(p) > 1])
    )
    assert recorded == []
    for _ in range(3):
        step = [chunk(t, len(t) - 1, len(t), b) for t, b in zip(tokens, blocks, strict=True)]
        for sequence, token in zip(tokens, runner.execute(Batch(step)).tokens, strict=True):
            assert token is not None
            sequence.append(token)
    assert recorded == [4]
    reference = Reference(path)
    assert tokens == [[*prompt, *reference.generate(prompt, 3)] for prompt in prompts]


def test_after_sleep_steps_are_recorded_again(checkpoint: Callable[[str], Path], recorded: list[int]) -> None:
    """Weights and cache have new addresses then; the old ones must be free meanwhile."""
    path = checkpoint("qwen3-tied")
    runner = recording(path, recorded)
    step = Batch([chunk([5], 0, 1, range(1))])
    expected = runner.execute(step).tokens
    assert runner.execute(step).tokens == expected
    cached = weakref.ref(runner._residency.cache.keys[0])
    runner.sleep(1)
    assert cached() is None
    runner.wake_up(ALL_PARTS)
    assert runner.execute(step).tokens == expected == Reference(path).generate([5], 1)
    assert recorded == [1, 1]


def test_only_decodes_that_all_sample_are_recorded(
    checkpoint: Callable[[str], Path], recorded: list[int]
) -> None:
    runner = recording(checkpoint("qwen3-tied"), recorded)
    first = chunk([5], 0, 1, range(1))
    runner.execute(Batch([replace(first, samples=False)]))
    runner.execute(Batch([first, chunk([5, 6], 0, 2, range(1, 2))]))
    assert recorded == []
