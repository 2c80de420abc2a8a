"""Sequences of a model that carries a state: each step reads what the last one that counted has left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.core.batch import Batch, ScheduledSequence, StepResult
from engine.core.engine_core import EngineCore
from engine.core.types import FinishReason
from engine.errors import ConfigError
from tests.engine.fake_runner import FakeRunner, make_request, reference_output


class CarryingRunner(FakeRunner):
    """A state is the list of all tokens so far. Reading another sequence's, or an old one, is an error."""

    def __init__(self, *, num_blocks: int = 64, num_sequences: int = 4, max_tokens_per_step: int = 1) -> None:
        super().__init__(
            num_blocks, 4, num_state_slots=2 * num_sequences, max_tokens_per_step=max_tokens_per_step
        )
        self.states: list[list[int]] = [[-1] for _ in range(2 * num_sequences)]
        self.num_tokens: list[int] = []  # of each step
        self.late: Callable[[int], bool] = lambda step: False
        self.fails_after: Callable[[Batch], bool] = lambda batch: False  # once states are written

    def execute(self, batch: Batch) -> StepResult:
        result = super().execute(batch)
        self.num_tokens.append(batch.num_tokens)
        written = {slot for one in batch.sequences for slot in (self._carry(one),)}
        assert len(written) == len(batch.sequences)
        if self.fails_after(batch):
            raise RuntimeError("out of luck")
        if self.late(self.num_steps):
            sampling = [index for index, one in enumerate(batch.inputs) if one.samples]
            return StepResult([()] * len(batch.sequences), late=set(sampling))
        return result

    def _carry(self, sequence: ScheduledSequence) -> int:
        one = sequence.input
        assert one.state_slots is not None and one.state_slots.read != one.state_slots.write
        context = [self._slots[self._slot(one.block_ids, position)] for position in range(one.start)]
        state = self.states[one.state_slots.read] if one.start else []
        assert state == context, sequence.request_id
        self.states[one.state_slots.write] = [*state, *one.token_ids]
        return one.state_slots.write


def core_of(runner: FakeRunner) -> EngineCore:
    config = EngineConfig(model=Path("nowhere"), max_num_seqs=8, max_num_batched_tokens=16)
    return EngineCore.from_config(config, runner, max_model_len=64, eos_token_ids=())


def outputs_of(core: EngineCore) -> dict[str, list[int]]:
    outputs: dict[str, list[int]] = {}
    while core.has_work:
        for delta in core.step():
            assert delta.error is None
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
        core.check_integrity()
    return outputs


REQUESTS = [make_request(str(n), [7, *range(n)], max_tokens=12) for n in (1, 3, 9, 21, 22, 30)]


def test_chunks_decodes_and_preemptions() -> None:
    core = core_of(CarryingRunner(num_blocks=16))
    for request in REQUESTS:
        core.add(request)
    assert outputs_of(core) == {one.request_id: reference_output(one) for one in REQUESTS}
    assert core.stats().num_preemptions > 0


def test_no_more_sequences_run_than_have_a_state() -> None:
    core = core_of(CarryingRunner(num_sequences=2))
    for request in REQUESTS:
        core.add(request)
    core.step()
    assert core.stats().num_requests_running == 2
    assert outputs_of(core).keys() == {one.request_id for one in REQUESTS}


def test_a_cached_prefix_is_not_used() -> None:
    """A block has keys and values, but nothing of the state."""
    core, prompt = core_of(CarryingRunner()), list(range(24))
    for name in ("first", "second"):
        request = make_request(name, prompt)
        core.add(request)
        assert outputs_of(core) == {name: reference_output(request)}
    assert core.stats().prefix_cache_hits == 0
    assert core.stats().cache_config["enable_prefix_caching"] == "False"


@pytest.mark.parametrize("steps", [{1}, {2}, {2, 3, 5}, {4, 6, 7}])
def test_a_late_sequence_runs_again_from_the_same_state(steps: set[int]) -> None:
    runner = CarryingRunner()
    runner.late = lambda step: step in steps
    core = core_of(runner)
    for request in REQUESTS:
        core.add(request)
    assert outputs_of(core) == {one.request_id: reference_output(one) for one in REQUESTS}


@pytest.mark.parametrize("length", [1, 2, 9, 16, 17, 30])
def test_the_prompt_of_a_late_sequence_runs_again_once_at_most(length: int) -> None:
    """Its last token waits alone: a chunk again in every step would hold up all others."""
    runner, request = CarryingRunner(), make_request("late", list(range(length)), max_tokens=3)
    runner.late = lambda step: step < 40
    core = core_of(runner)
    core.add(request)
    assert outputs_of(core) == {"late": reference_output(request)}
    assert runner.num_tokens.count(1) >= 36
    assert sum(one for one in runner.num_tokens if one > 1) <= length + 16, "one chunk of 16 tokens again"


def test_a_step_that_fails_after_it_wrote_runs_again_from_the_same_state() -> None:
    runner = CarryingRunner()
    runner.fails_after = lambda batch: len(batch.sequences) > 1  # each alone is well
    core = core_of(runner)
    for request in REQUESTS:
        core.add(request)
    assert outputs_of(core) == {one.request_id: reference_output(one) for one in REQUESTS}


def test_the_state_of_a_request_that_ends_is_free() -> None:
    core = core_of(CarryingRunner(num_sequences=2))
    gone = [replace(REQUESTS[3], request_id=name) for name in ("gone", "too")]
    for request in (*gone, REQUESTS[0]):
        core.add(request)
    core.step()
    for request in gone:
        delta = core.abort(request.request_id)
        assert delta is not None and delta.finish_reason is FinishReason.ABORT
    core.check_integrity()
    assert outputs_of(core)[REQUESTS[0].request_id] == reference_output(REQUESTS[0])


def test_guessed_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="runs without speculation"):
        core_of(CarryingRunner(max_tokens_per_step=3))
