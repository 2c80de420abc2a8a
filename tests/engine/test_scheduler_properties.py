"""Whatever is asked of the scheduler in whatever order: books in order, limits kept, output as if alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.batch import StepResult
from engine.core.types import EngineRequest, FinishReason, SamplingParams
from engine.core.window_groups import WindowNeeds
from engine.errors import GenerationFailed
from tests.engine.fake_runner import logprobs_of, make_request, reference_output
from tests.engine.test_scheduler import Harness

EOS = (0, 1)
MAX_MODEL_LEN = 24


@dataclass(frozen=True)
class Abort:
    which: int


@dataclass(frozen=True)
class Fail:
    """A step in which the runner gives up on one of its sequences."""

    which: int


@dataclass(frozen=True)
class Reset:
    pass


@dataclass(frozen=True)
class Steps:
    count: int


@dataclass(frozen=True)
class Add:
    prompt: list[int]
    params: SamplingParams
    priority: int
    group: str
    arrival_time: float = field(default=0.0)


ADDS = st.builds(
    Add,
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=MAX_MODEL_LEN - 1),
    params=st.builds(
        SamplingParams,
        max_tokens=st.integers(0, 12),
        min_tokens=st.integers(0, 3),
        seed=st.integers(0, 3),
        stop_token_ids=st.frozensets(st.integers(0, 39), max_size=2),
        ignore_eos=st.booleans(),
        logprobs=st.none() | st.just(0),
        prompt_logprobs=st.none() | st.just(0),
    ),
    priority=st.integers(-2, 2),
    group=st.sampled_from(["", "one", "other"]),  # of sequences by themselves, and of two requests of many
    arrival_time=st.floats(0, 300),
)
EVENTS = st.lists(
    ADDS
    | ADDS
    | st.builds(Abort, st.integers(0, 20))
    | st.builds(Fail, st.integers(0, 7))
    | st.builds(Reset)
    | st.builds(Steps, st.integers(1, 9)),
    max_size=25,
)


class Trace:
    """A scheduler under random events, and the expected state of each request."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.requests: list[EngineRequest] = []
        self.sampled: set[str] = set()  # sequences that got a token in the last step

    def apply(self, event: Add | Abort | Fail | Reset | Steps) -> None:
        scheduler = self.harness.scheduler
        if isinstance(event, Add):
            request = make_request(
                f"r{len(self.requests)}",
                event.prompt,
                params=event.params,
                priority=event.priority,
                group=event.group,
                arrival_time=event.arrival_time,
            )
            self.requests.append(request)
            self.harness.add(request)
        elif isinstance(event, Abort) and self.requests:
            victim = self.requests[event.which % len(self.requests)].request_id
            if delta := scheduler.abort(victim):
                self.harness.collect([delta])
        elif isinstance(event, Reset):
            scheduler.reset_prefix_cache()
        elif isinstance(event, Fail) and scheduler.has_work:
            self.fail(event.which)
        elif isinstance(event, Steps):
            for _ in range(event.count):
                self.step()
        scheduler.check_integrity()

    def step(self) -> None:
        scheduler = self.harness.scheduler
        if not scheduler.has_work:
            return
        batch = self.harness.step()
        sampled, self.sampled = self.sampled, {one.request_id for one in batch.sequences if one.input.samples}
        single = [one.request_id for one in batch.sequences if len(one.input.token_ids) == 1]
        assert 0 < batch.num_tokens <= scheduler.max_num_batched_tokens
        assert len(batch.sequences) <= scheduler.max_num_seqs
        if sampled.intersection(single) and scheduler.max_num_batched_tokens > 8:
            assert batch.num_tokens - len(single) <= 8  # prompt tokens, beside decodes

    def fail(self, which: int) -> None:
        self.sampled = set()
        batch = self.harness.scheduler.schedule()
        result = self.harness.runner.execute(batch)
        index = which % len(batch.sequences)
        tokens = [() if place == index else token for place, token in enumerate(result.tokens)]
        failures = {index: GenerationFailed("broken")}
        failed = StepResult(tokens, result.logprobs, result.prompt_logprobs, failures)
        self.harness.collect(self.harness.scheduler.update(batch, failed))

    def check(self, request: EngineRequest) -> None:
        harness, name, params = self.harness, request.request_id, request.params
        expected = reference_output(request, eos_token_ids=EOS, max_model_len=MAX_MODEL_LEN)
        last, output = harness.last[name], harness.outputs[name]
        if last.finish_reason in (FinishReason.ABORT, FinishReason.ERROR):
            assert output == expected[: len(output)]
        else:
            assert output == expected
        assert (str(last.error) == "broken") == (last.finish_reason == FinishReason.ERROR)
        assert harness.logprobs[name] == [
            logprobs_of(token) for token in output if params.logprobs is not None
        ]
        returned = harness.prompt_logprobs.get(name)
        if returned is not None:
            assert returned == (None, *map(logprobs_of, request.prompt_token_ids[1:]))
        elif params.prompt_logprobs is not None:
            assert not output and last.finish_reason in (FinishReason.ABORT, FinishReason.ERROR)


def least_blocks(window: int, block_size: int, budget: int, max_tokens_per_step: int) -> int:
    needs = WindowNeeds.of(
        window, block_size, max_num_batched_tokens=budget, max_tokens_per_step=max_tokens_per_step
    )
    return needs.per_sequence + needs.per_step


@settings(max_examples=250, deadline=None)
@given(
    EVENTS,
    st.sampled_from([1, 2, 4, 5]),
    st.integers(0, 20),
    st.sampled_from([1, 2, 6]),
    st.sampled_from([2, 8, 40]),
    st.booleans(),
    st.sampled_from([1, 1, 2, 5]),
    st.dictionaries(st.sampled_from([1, 2, 5, 8, 13]), st.integers(0, 6), max_size=2),
)
def test_any_trace(
    events: list[Add | Abort | Fail | Reset | Steps],
    block_size: int,
    spare_blocks: int,
    max_num_seqs: int,
    budget: int,
    prefix_caching: bool,
    max_tokens_per_step: int,
    windows: dict[int, int],
) -> None:
    """`windows`: groups with so many blocks to spare."""
    harness = Harness(
        num_blocks=-(-MAX_MODEL_LEN // block_size) + spare_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        budget=budget,
        max_model_len=MAX_MODEL_LEN,
        max_prefill_beside_decodes=8,
        max_tokens_per_step=max_tokens_per_step,
        window_blocks={
            window: spare + least_blocks(window, block_size, budget, max_tokens_per_step)
            for window, spare in windows.items()
        },
        prefix_caching=prefix_caching,
        eos_token_ids=EOS,
    )
    trace = Trace(harness)
    for event in events:
        trace.apply(event)
    harness.finish(max_steps=5000)
    assert harness.last.keys() == {request.request_id for request in trace.requests}
    assert harness.scheduler.stats().kv_cache_usage == 0
    for request in trace.requests:
        trace.check(request)
