"""Recorded decode steps, by a recorder that runs the step again on the same memory, as a graph would."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.core.batch import Batch
from engine.core.sleep import ALL_PARTS
from engine.execution.graphs import Run
from engine.execution.runner import ModelRunner
from tests.engine.test_models import chunk, runner_of
from tests.engine.tiny_models import Reference, prompt_of

pytestmark = pytest.mark.usefixtures("triton_on_cpu")


class Recorder:
    """Notes each recording's rows; those of `broken` sizes fail."""

    def __init__(self, *broken: int) -> None:
        self.recorded: list[int] = []
        self._broken = broken

    def __call__(self, run: Run) -> Run:
        num_rows = len(run())
        if num_rows in self._broken:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded.append(num_rows)
        return run


@pytest.fixture
def path(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen3-tied")


def recording(path: Path, recorder: Recorder) -> ModelRunner:
    return runner_of(path, record=lambda: recorder)


def test_decodes_are_replayed_with_rows_to_spare(path: Path) -> None:
    """Three sequences take the graph of four rows; their prompts run without a graph."""
    recorder = Recorder()
    runner = recording(path, recorder)
    prompts = [prompt_of(length) for length in (1, 4, 10)]
    blocks = [range(3), range(20, 24), range(10, 18)]
    tokens = [list(prompt) for prompt in prompts]
    runner.execute(
        Batch([chunk(p, 0, len(p) - 1, b) for p, b in zip(prompts, blocks, strict=True) if len(p) > 1])
    )
    assert recorder.recorded == []
    for _ in range(2):
        step = [chunk(t, len(t) - 1, len(t), b) for t, b in zip(tokens, blocks, strict=True)]
        for sequence, token in zip(tokens, runner.execute(Batch(step)).tokens, strict=True):
            sequence.extend(token)
    assert recorder.recorded == [4]
    reference = Reference(path)
    assert tokens == [[*prompt, *reference.generate(prompt, 2)] for prompt in prompts]


def test_after_sleep_steps_are_recorded_again(path: Path) -> None:
    """Weights and cache have new addresses then; the old ones must be free meanwhile."""
    recorder = Recorder()
    runner = recording(path, recorder)
    step = Batch([chunk([5], 0, 1, range(1))])
    expected = runner.execute(step).tokens
    assert runner.execute(step).tokens == expected
    cached = weakref.ref(runner._residency.cache.keys[0])
    runner.sleep(1)
    assert cached() is None
    runner.wake_up(ALL_PARTS)
    assert runner.execute(step).tokens == expected == [tuple(Reference(path).generate([5], 1))]
    assert recorder.recorded == [1, 1]


def test_only_decodes_that_all_sample_are_recorded(path: Path) -> None:
    recorder = Recorder()
    runner = recording(path, recorder)
    first = chunk([5], 0, 1, range(1))
    runner.execute(Batch([first._replace(input=first.input._replace(samples=False))]))
    runner.execute(Batch([first, chunk([5, 6], 0, 2, range(1, 2))]))
    assert recorder.recorded == []


def test_all_sizes_up_to_the_largest_batch_are_recorded_ahead(path: Path) -> None:
    recorder = Recorder()
    recording(path, recorder).record_graphs(3)
    assert recorder.recorded == [4, 2, 1]


def test_a_recording_that_fails_leaves_steps_unrecorded(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With one warning; sizes that were recorded before are still replayed."""
    recorder = Recorder(2)
    runner = recording(path, recorder)
    runner.record_graphs(4)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "Recording steps of 2 rows failed; they run unrecorded."
    ]
    assert recorder.recorded == [4]
    first, second = chunk([5], 0, 1, range(1)), chunk([9], 0, 1, range(1, 2))
    reference = Reference(path)
    expected = [tuple(reference.generate([token], 1)) for token in (5, 9)]
    assert runner.execute(Batch([first, second])).tokens == expected
    assert recorder.recorded == [4]


def test_a_step_may_be_submitted_before_the_last_is_collected(path: Path) -> None:
    """A replay overwrites the logits of the one before it, which are kept until they are sampled."""
    runner = recording(path, Recorder())
    steps = [Batch([chunk([token], 0, 1, range(place, place + 1))]) for place, token in enumerate((5, 9, 40))]
    expected = [runner.execute(step).tokens for step in steps]
    assert len(set(map(str, expected))) > 1
    tickets = [runner.submit(step) for step in steps]
    assert [runner.collect(ticket).tokens for ticket in tickets] == expected
