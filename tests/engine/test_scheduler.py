from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from engine.core.batch import Batch, StepResult
from engine.core.block_manager import BlockManager
from engine.core.block_tables import BlockTables
from engine.core.scheduler import Scheduler
from engine.core.types import EngineRequest, FinishReason, PositionLogprobs, SamplingParams, TokenDelta
from engine.core.window_groups import WindowGroup, WindowNeeds
from engine.errors import ConfigError, GenerationFailed, InvalidRequest
from tests.engine.fake_runner import FakeRunner, logprobs_of, make_request, reference_output
from tests.engine.test_constraints import Script


class Harness:
    """A scheduler and a fake runner, stepped by hand; collects each request's output."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        budget: int = 64,
        max_model_len: int = 64,
        prefix_caching: bool = True,
        max_prefill_beside_decodes: int | None = None,
        max_tokens_per_step: int = 1,
        window_blocks: Mapping[int, int] | None = None,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        self.now = 0.0
        self.runner = FakeRunner(
            num_blocks, block_size, max_tokens_per_step=max_tokens_per_step, window_blocks=window_blocks
        )
        windows = [
            WindowGroup(
                BlockManager(count, block_size, enable_prefix_caching=prefix_caching),
                window,
                WindowNeeds.of(
                    window,
                    block_size,
                    max_num_batched_tokens=budget,
                    max_tokens_per_step=max_tokens_per_step,
                ),
            )
            for window, count in self.runner.window_blocks.items()
        ]
        self.scheduler = Scheduler(
            BlockTables(
                BlockManager(num_blocks, block_size, enable_prefix_caching=prefix_caching),
                windows,
                max_tokens_per_step=max_tokens_per_step,
            ),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=max_model_len,
            eos_token_ids=eos_token_ids,
            vocab_size=self.runner.vocab_size,
            max_prefill_beside_decodes=max_prefill_beside_decodes,
            max_tokens_per_step=max_tokens_per_step,
            clock=lambda: self.now,
        )
        self.outputs: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[PositionLogprobs]] = {}
        self.prompt_logprobs: dict[str, tuple[PositionLogprobs | None, ...]] = {}
        self.last: dict[str, TokenDelta] = {}

    def add(self, *requests: EngineRequest) -> None:
        for request in requests:
            self.scheduler.add(request)
            self.outputs[request.request_id] = []
            self.logprobs[request.request_id] = []

    def step(self) -> Batch:
        self.now += 1
        batch = self.scheduler.schedule()
        self.collect(self.scheduler.update(batch, self.runner.execute(batch)))
        self.scheduler.check_integrity()
        return batch

    def collect(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            self.outputs[delta.request_id] += delta.token_ids
            self.logprobs[delta.request_id] += delta.logprobs
            if delta.prompt_logprobs is not None:
                assert delta.request_id not in self.prompt_logprobs, "reported twice"
                self.prompt_logprobs[delta.request_id] = delta.prompt_logprobs
            if delta.finish_reason:
                assert delta.request_id not in self.last, "ended twice"
                self.last[delta.request_id] = delta

    def finish(self, max_steps: int = 1000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return
            assert self.step().sequences
        raise AssertionError(f"still at work after {max_steps} steps: {self.scheduler!r}")


def shape(batch: Batch) -> list[tuple[str, int]]:
    return [(sequence.request_id, len(sequence.input.token_ids)) for sequence in batch.sequences]


# Refusals


@pytest.mark.parametrize("limits", [{"max_num_seqs": 0}, {"budget": 0}, {"max_model_len": 1}])
def test_limits_that_allow_nothing_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        Harness(**limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "words", "param"),
    [
        (make_request("a", []), "prompt is empty", "prompt"),
        (make_request("a", range(16)), "is 16 tokens.*requested 17 tokens .16 in the prompt", "prompt"),
        (make_request("a", [1], max_tokens=-1), "max_tokens is -1", "max_tokens"),
        (
            make_request("a", range(17), max_tokens=0),
            "is 16 tokens.*requested 17 tokens .17 in the prompt",
            "prompt",
        ),
        (make_request("a", [1, 1 << 17]), "token id 131072; this model's are 0 to 131071", "prompt"),
        (make_request("a", [-1]), "token id -1", "prompt"),
        (make_request("a", [1], priority=1 << 40), "priority is 1099511627776", "priority"),
        *(
            (make_request("a", [1], params=SamplingParams(max_tokens=1, **wrong)), words, next(iter(wrong)))
            for wrong, words in (
                ({"logit_bias": {1 << 17: 1.0}}, "token id 131072"),
                ({"bad_words": ((1,), ())}, "word without tokens"),
                ({"bad_words": ((1, -5),)}, "token id -5"),
                ({"allowed_token_ids": ()}, "is empty"),
                ({"allowed_token_ids": (7, 1 << 20)}, "token id 1048576"),
            )
        ),
    ],
)
def test_a_request_that_can_never_run_is_refused(request_: EngineRequest, words: str, param: str) -> None:
    harness = Harness(max_model_len=16)
    with pytest.raises(InvalidRequest, match=words) as caught:
        harness.scheduler.add(request_)
    assert caught.value.param == param
    assert not harness.scheduler.has_work


def test_a_prompt_longer_than_the_whole_cache_is_refused() -> None:
    harness = Harness(num_blocks=3, max_model_len=1000)
    assert harness.scheduler.max_model_len == 12
    with pytest.raises(InvalidRequest, match="maximum context length is 12 tokens"):
        harness.scheduler.add(make_request("a", range(12)))
    harness.add(make_request("b", range(11)))
    harness.finish()
    assert harness.last["b"].finish_reason == FinishReason.LENGTH


def test_an_id_in_use_is_refused() -> None:
    harness = Harness()
    harness.add(make_request("a", [1]))
    with pytest.raises(InvalidRequest, match="'a' is running already"):
        harness.scheduler.add(make_request("a", [2]))
    harness.finish()
    harness.add(make_request("a", [1]))


# Ends


def finish_of(params: SamplingParams, *, eos: Sequence[int] = (), max_model_len: int = 64) -> TokenDelta:
    harness = Harness(eos_token_ids=eos, max_model_len=max_model_len)
    request = make_request("a", [1, 2, 3], params=params)
    harness.add(request)
    harness.finish()
    assert harness.outputs["a"] == reference_output(request, eos_token_ids=eos, max_model_len=max_model_len)
    assert harness.scheduler.stats().kv_cache_usage == 0
    return harness.last["a"]


def free_run(num_tokens: int) -> list[int]:
    return reference_output(make_request("a", [1, 2, 3], max_tokens=num_tokens))


def test_max_tokens_ends_a_sequence() -> None:
    last = finish_of(SamplingParams(max_tokens=3))
    assert (last.finish_reason, last.stop_reason) == (FinishReason.LENGTH, None)


def test_a_full_context_ends_a_sequence() -> None:
    last = finish_of(SamplingParams(max_tokens=100), max_model_len=7)
    assert (last.finish_reason, last.stop_reason) == (FinishReason.LENGTH, None)


def test_the_main_end_of_sequence_has_no_stop_reason() -> None:
    third = free_run(3)[2]
    last = finish_of(SamplingParams(max_tokens=9), eos=[third, 99])
    assert (last.finish_reason, last.stop_reason, last.token_ids) == (FinishReason.STOP, None, (third,))


def test_another_end_of_sequence_token_is_named() -> None:
    third = free_run(3)[2]
    last = finish_of(SamplingParams(max_tokens=9), eos=[99, third])
    assert (last.finish_reason, last.stop_reason) == (FinishReason.STOP, third)


def test_a_stop_token_is_named_also_when_eos_is_ignored() -> None:
    second, third = free_run(3)[1:]
    assert second != third
    params = SamplingParams(max_tokens=9, stop_token_ids=frozenset([third]), ignore_eos=True)
    last = finish_of(params, eos=[second])
    assert (last.finish_reason, last.stop_reason) == (FinishReason.STOP, third)


def test_min_tokens_come_before_any_stop() -> None:
    tokens = free_run(4)
    assert tokens[1] not in tokens[2:]
    stop = frozenset([tokens[1], tokens[3]])
    last = finish_of(SamplingParams(max_tokens=9, min_tokens=2, stop_token_ids=stop))
    assert (last.finish_reason, last.stop_reason) == (FinishReason.STOP, tokens[3])


def test_a_stop_in_the_last_allowed_token_is_a_stop() -> None:
    third = free_run(3)[2]
    assert finish_of(SamplingParams(max_tokens=3), eos=[third]).finish_reason == FinishReason.STOP


# Order of running


def test_decodes_come_first_and_prompts_get_the_rest() -> None:
    harness = Harness(budget=8)
    harness.add(make_request("short", [1, 2], max_tokens=9), make_request("long", range(20)))
    assert shape(harness.step()) == [("short", 2), ("long", 6)]
    assert shape(harness.step()) == [("short", 1), ("long", 7)]
    harness.add(make_request("later", [3]))
    assert shape(harness.step()) == [("short", 1), ("later", 1), ("long", 6)]
    assert shape(harness.step()) == [("short", 1), ("long", 1), ("later", 1)]
    harness.finish()


def test_one_token_runs_before_longer_chunks() -> None:
    harness = Harness(budget=8)
    harness.add(make_request("a", range(4)), make_request("b", [1]))
    assert shape(harness.step()) == [("b", 1), ("a", 4)]


def test_only_a_complete_prompt_samples() -> None:
    harness = Harness(budget=4)
    harness.add(make_request("a", range(6)))
    first, second = harness.step().sequences[0], harness.step().sequences[0]
    assert (first.input.samples, second.input.samples) == (False, True)
    assert (first.input.start, second.input.start, second.output_position) == (0, 4, 0)
    assert harness.step().sequences[0].output_position == 1


def test_no_more_sequences_than_allowed() -> None:
    harness = Harness(max_num_seqs=2)
    harness.add(*(make_request(name, [1], max_tokens=2) for name in "abc"))
    assert shape(harness.step()) == [("a", 1), ("b", 1)]
    assert harness.scheduler.stats().num_requests_waiting == 1
    harness.step()
    assert shape(harness.step()) == [("c", 1)]


def test_every_running_sequence_can_decode_in_every_step() -> None:
    harness = Harness(max_num_seqs=8, budget=3)
    assert harness.scheduler.max_num_seqs == 3


def test_prompts_that_use_up_the_budget_leave_none_for_new_ones() -> None:
    harness = Harness(budget=4)
    of_one = (make_request(name, [n] * 12, group="one") for n, name in enumerate("ab"))
    harness.add(*of_one)
    assert [shape(harness.step()) for _ in range(3)] == [[("a", 4)]] * 3
    assert shape(harness.step()) == [("a", 1), ("b", 3)]  # a decode leaves 3 of the 4


def test_two_running_prompts_share_the_budget_in_order() -> None:
    harness = Harness(budget=6)
    harness.add(make_request("a", range(9)), make_request("b", range(100, 109)))
    steps = [shape(harness.step()) for _ in range(3)]
    assert steps == [[("a", 4), ("b", 2)], [("a", 4), ("b", 2)], [("a", 1), ("b", 5)]]
    assert shape(harness.step()) == [("a", 1), ("b", 1)]
    harness.add(make_request("urgent", range(200, 209), priority=-1))
    assert shape(harness.step()) == [("a", 1), ("b", 1), ("urgent", 4)]


def test_sequences_run_by_priority_and_then_by_arrival() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(
        make_request("late", [1], priority=5, max_tokens=1),
        make_request("first", [1], priority=1, max_tokens=1),
        make_request("second", [1], priority=1, max_tokens=1),
    )
    assert [shape(harness.step())[0][0] for _ in range(3)] == ["first", "second", "late"]


def test_beside_decodes_prompts_get_no_more_than_their_share() -> None:
    harness = Harness(budget=64, max_prefill_beside_decodes=5)
    harness.add(make_request("first", range(20), max_tokens=3), make_request("second", range(30, 42)))
    assert shape(harness.step()) == [("first", 20), ("second", 12)]  # no decodes yet: no limit
    harness.add(make_request("third", range(50, 57)), make_request("fourth", range(60, 64)))
    assert shape(harness.step()) == [("first", 1), ("second", 1), ("third", 3), ("fourth", 2)]
    assert shape(harness.step()) == [("first", 1), ("second", 1), ("third", 3), ("fourth", 2)]
    harness.finish()


def test_a_level_of_priority_is_worth_a_fixed_waiting_time() -> None:
    harness = Harness(max_num_seqs=1)
    arrivals = {"low": (1, 0.0), "soon": (0, 59.0), "late": (0, 61.0), "later": (-2, 182.0)}
    for name, (priority, arrival_time) in arrivals.items():
        harness.add(make_request(name, [1], priority=priority, arrival_time=arrival_time, max_tokens=1))
    assert [shape(harness.step())[0][0] for _ in range(4)] == ["soon", "low", "late", "later"]


# Blocks


def test_out_of_blocks_the_sequence_due_last_is_recomputed() -> None:
    harness = Harness(num_blocks=4, prefix_caching=False)
    requests = [make_request(name, [number] * 7, max_tokens=8) for number, name in enumerate("ab")]
    harness.add(*requests)
    assert shape(harness.step()) == [("a", 7)]  # b waits: a block for a's growth is kept
    harness.finish()
    assert harness.scheduler.stats().num_preemptions == 0

    harness = Harness(num_blocks=6, prefix_caching=False)
    harness.add(*requests)
    assert shape(harness.step()) == [("a", 7), ("b", 7)]
    harness.step()
    for _ in range(5):  # both hold three blocks from the ninth position on; a fourth is not to be had
        harness.step()
    assert harness.scheduler.stats().num_preemptions == 1
    assert harness.scheduler.stats().num_requests_waiting == 1
    harness.finish()
    for request in requests:
        assert harness.outputs[request.request_id] == reference_output(request)


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    harness = Harness(num_blocks=6, max_num_seqs=2)
    a, b = (make_request(name, [number] * 7, max_tokens=12) for number, name in enumerate("ab"))
    harness.add(a, b)
    while not harness.scheduler.stats().num_preemptions:
        harness.step()
    harness.collect([delta for delta in [harness.scheduler.abort("a")] if delta])
    (again,) = harness.step().sequences
    assert (again.request_id, again.input.samples) == ("b", True)
    assert again.input.start >= 8 and again.output_position == len(harness.outputs["b"]) - 1
    harness.finish()
    assert harness.outputs["b"] == reference_output(b)
    assert harness.last["b"].num_cached_tokens == 0  # of the prompt, nothing came from the cache
    assert harness.scheduler.stats().prefix_cache_hits == 0


def test_a_sequence_that_needs_a_block_may_itself_be_preempted() -> None:
    harness = Harness(num_blocks=6, prefix_caching=False)
    a, b = make_request("a", [1] * 10, max_tokens=3), make_request("b", [2] * 8, max_tokens=8)
    harness.add(a, b)
    harness.step()
    assert harness.scheduler.stats().num_requests_running == 2
    harness.step()
    harness.add(make_request("first", [3] * 3, max_tokens=2, priority=-1))
    harness.finish()
    for request in (a, b):
        assert harness.outputs[request.request_id] == reference_output(request)


def test_a_preempted_sequence_neither_returns_at_once_nor_is_overtaken() -> None:
    harness = Harness(num_blocks=6, prefix_caching=False, max_num_seqs=2)
    harness.add(*(make_request(name, [number] * 7, max_tokens=9) for number, name in enumerate("ab")))
    harness.add(make_request("c", [9], max_tokens=9))
    while not harness.scheduler.stats().num_preemptions:
        batch = harness.step()
    assert shape(batch) == [("a", 1)]
    harness.finish()


def test_a_cached_prefix_is_not_recomputed() -> None:
    harness = Harness()
    prompt = list(range(10))
    harness.add(make_request("a", prompt))
    harness.finish()
    request = make_request("b", [*prompt[:9], 77, 78])
    harness.add(request)
    assert harness.step().sequences[0].input.start == 8
    harness.finish()
    assert harness.outputs["b"] == reference_output(request)
    assert harness.last["b"].num_cached_tokens == 8
    stats = harness.scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (21, 8)


def test_the_last_prompt_token_is_always_computed() -> None:
    harness = Harness()
    prompt = list(range(8))
    for name in "ab":
        harness.add(make_request(name, prompt))
        harness.finish()
    assert harness.last["b"].num_cached_tokens == 4
    assert harness.outputs["a"] == harness.outputs["b"]


def test_generated_tokens_are_cached_too() -> None:
    harness = Harness()
    first = make_request("turn-1", range(6), max_tokens=8)
    harness.add(first)
    harness.finish()
    second = make_request("turn-2", [*range(6), *harness.outputs["turn-1"], 5, 6])
    harness.add(second)
    harness.finish()
    assert harness.last["turn-2"].num_cached_tokens == 12  # of 14 - 1 tokens with keys and values
    assert harness.outputs["turn-2"] == reference_output(second)


def test_of_many_samples_of_a_prompt_only_the_first_computes_it() -> None:
    harness = Harness(max_num_seqs=4, budget=16)
    samples = [
        make_request(f"s{seed}", range(9), params=SamplingParams(max_tokens=3, seed=seed))
        for seed in range(3)
    ]
    other = make_request("other", range(50, 53))
    harness.add(*samples, other)
    assert shape(harness.step()) == [("s0", 9), ("other", 3)]  # the others wait without delaying anyone
    assert shape(harness.step()) == [("s0", 1), ("other", 1), ("s1", 1), ("s2", 1)]
    harness.finish()
    assert {harness.last[f"s{seed}"].num_cached_tokens for seed in (1, 2)} == {8}
    for request in samples:
        assert harness.outputs[request.request_id] == reference_output(request)


def test_a_block_is_shared_only_when_it_is_full() -> None:
    harness = Harness(budget=6)
    later = make_request("b", [*range(10), 50])
    harness.add(make_request("a", range(10)), later)
    assert shape(harness.step()) == [("a", 6)]  # the second block is half full
    assert shape(harness.step()) == [("a", 4)]  # and b waits for it, though there is budget
    assert harness.step().sequences[1].input.start == 8
    harness.finish()
    assert harness.outputs["b"] == reference_output(later)


def test_no_sequence_waits_for_a_prefix_that_was_evicted() -> None:
    harness = Harness(num_blocks=9)
    harness.add(make_request("older", range(200, 212), max_tokens=1))
    harness.step()
    harness.add(make_request("first", range(8), max_tokens=1))
    harness.step()
    harness.add(make_request("twin", range(8), max_tokens=20))  # computes its second block anew, unfindable
    harness.step()
    harness.add(make_request("evictor", range(100, 113), max_tokens=6))
    while "evictor" not in harness.last:
        harness.step()
    latest = make_request("latest", [*range(8), 50, 51])
    harness.add(latest)
    assert [(sequence.request_id, sequence.input.start) for sequence in harness.step().sequences][1] == (
        "latest",
        4,
    )
    harness.finish()
    assert harness.outputs["latest"] == reference_output(latest)


def test_without_prefix_caching_no_sequence_waits_for_a_prefix() -> None:
    harness = Harness(prefix_caching=False)
    harness.add(make_request("a", range(9)), make_request("b", range(9)))
    assert shape(harness.step()) == [("a", 9), ("b", 9)]
    assert harness.scheduler.stats().prefix_cache_queries == 0


def test_logprobs_of_a_prompt_need_all_of_it_computed() -> None:
    harness = Harness(budget=6)
    harness.add(make_request("before", range(10), max_tokens=1))
    harness.finish()
    params = SamplingParams(max_tokens=2, prompt_logprobs=0)
    harness.add(make_request("a", range(10), params=params))
    assert shape(harness.step()) == [("a", 6)]
    assert shape(harness.step()) == [("a", 4)]
    harness.finish()
    assert harness.prompt_logprobs["a"] == (None, *map(logprobs_of, range(1, 10)))


def test_the_prompt_only() -> None:
    harness = Harness(budget=6, max_model_len=16)
    harness.add(make_request("a", range(16), max_tokens=0))
    harness.finish()
    last = harness.last["a"]
    assert (last.token_ids, last.finish_reason, last.prompt_logprobs) == ((), FinishReason.LENGTH, None)
    assert last.timings is not None and last.timings.first_token_time is None
    stats = harness.scheduler.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.kv_cache_usage) == (16, 0, 0)


def test_a_reset_clears_the_cache_but_not_the_blocks_of_running_sequences() -> None:
    harness = Harness()
    ended, runs, after = (make_request(name, range(n, n + 9), max_tokens=8) for n, name in enumerate("abc"))
    harness.add(ended)
    harness.finish()
    harness.add(runs)
    harness.step()
    harness.scheduler.reset_prefix_cache()
    harness.scheduler.check_integrity()
    harness.add(make_request("again", ended.prompt_token_ids), after)
    harness.finish()
    assert harness.last["again"].num_cached_tokens == 0
    for request in (runs, after):
        assert harness.outputs[request.request_id] == reference_output(request)


# Aborts and errors


def test_an_abort_frees_blocks_at_once_whatever_the_state() -> None:
    harness = Harness(max_num_seqs=1, budget=4)
    harness.add(make_request("running", range(20)), make_request("waiting", [1]))
    harness.step()
    for request_id in ("running", "waiting"):
        delta = harness.scheduler.abort(request_id)
        assert delta is not None and delta.finish_reason == FinishReason.ABORT and delta.token_ids == ()
    assert harness.scheduler.abort("running") is None
    assert harness.scheduler.stats().kv_cache_usage == 0
    assert not harness.scheduler.has_work
    harness.scheduler.check_integrity()


def test_an_abort_while_the_step_runs_leaves_the_rest_alone() -> None:
    harness = Harness()
    kept = make_request("kept", [3, 4])
    harness.add(make_request("gone", [1, 2]), kept)
    batch = harness.scheduler.schedule()
    tokens = harness.runner.execute(batch)
    harness.scheduler.abort("gone")
    harness.add(make_request("gone", [5, 6, 7]))  # the id is free again; the old step isn't its own
    harness.collect(harness.scheduler.update(batch, tokens))
    assert harness.outputs["gone"] == []
    harness.scheduler.check_integrity()
    harness.finish()
    assert harness.outputs["kept"] == reference_output(kept)
    assert harness.outputs["gone"] == reference_output(make_request("gone", [5, 6, 7]))


def test_a_failure_ends_only_its_own_request() -> None:
    harness = Harness(max_num_seqs=3)
    harness.add(*(make_request(name, [1]) for name in "abcd"))
    batch = harness.scheduler.schedule()
    harness.scheduler.abort("a")
    tokens = harness.runner.execute(batch).tokens
    failures = {0: GenerationFailed("of no matter"), 1: GenerationFailed("broken")}
    failed = StepResult([tokens[0], (), tokens[2]], failures=failures)
    b, c = harness.scheduler.update(batch, failed)
    assert (b.request_id, b.finish_reason, str(b.error)) == ("b", FinishReason.ERROR, "broken")
    harness.scheduler.check_integrity()
    harness.collect([b, c])
    harness.finish()
    assert {name: last.finish_reason for name, last in harness.last.items()} == {
        "b": FinishReason.ERROR,
        "c": FinishReason.LENGTH,
        "d": FinishReason.LENGTH,
    }


def test_a_lost_sequence_is_noticed() -> None:
    harness = Harness()
    harness.add(make_request("a", [1]))
    harness.scheduler._waiting.clear()
    with pytest.raises(RuntimeError, match=r"0 waiting.*has 1 sequences"):
        harness.scheduler.check_integrity()


# Several tokens in a step


@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
def test_several_tokens_in_a_step_give_the_same_output(block_size: int) -> None:
    """Beside others, through preemptions and the prefix cache; the counters count tokens, not steps."""
    expected, deltas = [], []
    for max_tokens_per_step in (1, 4):
        harness = Harness(
            num_blocks=48 // block_size, block_size=block_size, max_tokens_per_step=max_tokens_per_step
        )
        params = SamplingParams(max_tokens=14, logprobs=0)
        requests = [make_request(str(n), [n % 3] * 9, params=params, arrival_time=n) for n in range(6)]
        harness.add(*requests)
        harness.finish()
        expected = [reference_output(request) for request in requests]
        assert list(harness.outputs.values()) == expected
        assert list(harness.logprobs.values()) == [[logprobs_of(token) for token in own] for own in expected]
        stats = harness.scheduler.stats()
        assert stats.generation_tokens == sum(map(len, expected)) and stats.kv_cache_usage == 0
        deltas.append(harness.now)
    assert deltas[1] < deltas[0] / 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": 3}, FinishReason.LENGTH),
        ({"max_tokens": 30}, FinishReason.LENGTH),  # the context's end
        ({"max_tokens": 12, "stops": 2}, FinishReason.STOP),
        ({"max_tokens": 12, "stops": 2, "min_tokens": 2}, FinishReason.STOP),
        ({"max_tokens": 12, "stops": 2, "min_tokens": 3}, FinishReason.LENGTH),
    ],
)
def test_tokens_after_the_end_are_dropped(options: dict[str, int], reason: FinishReason) -> None:
    """`stops`: the position of the token that ends the output, in the middle of a step."""
    free = reference_output(make_request("a", [7, 10], max_tokens=14))
    assert len(set(free)) == 14
    stop = frozenset({free[options.pop("stops")]}) if "stops" in options else frozenset()
    params = SamplingParams(**options, stop_token_ids=stop, logprobs=0)  # type: ignore[arg-type]
    harness = Harness(max_model_len=16, max_tokens_per_step=8)
    request = make_request("a", [7, 10], params=params)
    harness.add(request)
    harness.finish()
    assert harness.outputs["a"] == reference_output(request, max_model_len=16)
    assert harness.logprobs["a"] == [logprobs_of(token) for token in harness.outputs["a"]]
    assert harness.last["a"].finish_reason == reason


def test_a_constraint_sees_each_kept_token_once() -> None:
    """The runner advances it to guess, and takes that back."""
    constraint = Script([{token} for token in range(2, 9)])
    harness = Harness(max_tokens_per_step=3)
    request = replace(make_request("a", [1], max_tokens=5), constraint=constraint)
    harness.add(request)
    harness.finish()
    assert harness.outputs["a"] == [2, 3, 4, 5, 6]
    assert constraint.accepted == [2, 3, 4, 5]


# Figures


def test_timings_and_counters() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add(make_request("a", range(5), max_tokens=2), make_request("b", [1], max_tokens=2))
    batch = harness.step()
    harness.step()
    last = harness.last["a"]
    assert last.timings is not None
    assert (last.timings.queue_s, last.timings.prefill_s, last.timings.decode_s) == (1, 0, 1)
    assert (last.timings.time_to_first_token_s, last.timings.end_to_end_s) == (1, 2)
    stats = harness.scheduler.stats()
    assert (stats.prompt_tokens, stats.generation_tokens) == (5, 2)
    assert (stats.num_requests_running, stats.num_requests_waiting) == (0, 1)
    delta = harness.scheduler.abort("b")
    assert delta is not None and delta.timings is not None
    assert delta.timings.queue_s is None and delta.timings.end_to_end_s == 2
    assert batch.num_tokens == 5


def test_the_first_delta_has_timings_and_those_between_have_none() -> None:
    harness = Harness()
    harness.add(make_request("a", [1], max_tokens=3))
    timings = []
    for _ in range(3):
        batch = harness.scheduler.schedule()
        (delta,) = harness.scheduler.update(batch, harness.runner.execute(batch))
        timings.append(delta.timings)
    assert timings[0] is not None and timings[0].finished_time is None
    assert timings[1] is None
    assert timings[2] is not None and timings[2].finished_time is not None


# Anything goes


def random_request(
    rng: random.Random, number: int, *, longest: int, priorities: Sequence[int]
) -> EngineRequest:
    """Prompts from a small tree of prefixes, so that prefixes recur in all states."""
    beginning = [rng.randrange(3)] * rng.randrange(0, longest // 2)
    prompt = [*beginning, *(rng.randrange(40) for _ in range(rng.randrange(1, longest // 2)))]
    max_tokens = 0 if rng.random() < 0.1 else rng.randrange(1, longest)
    return make_request(
        f"r{number}",
        prompt,
        priority=rng.choice(priorities),
        params=SamplingParams(
            max_tokens=max_tokens,
            min_tokens=rng.choice([0, 0, rng.randrange(max_tokens + 1)]),
            seed=rng.randrange(4),
            stop_token_ids=frozenset(rng.sample(range(40), rng.choice([0, 1]))),
            ignore_eos=rng.random() < 0.3,
            logprobs=rng.choice([None, 0]),
            prompt_logprobs=rng.choice([None, None, 0]),
        ),
    )


@pytest.mark.parametrize("seed", range(24))
def test_random_traces(seed: int) -> None:
    """Whatever arrives, ends or is aborted: consistent state, limits kept, output as if alone."""
    rng = random.Random(seed)
    block_size = rng.choice([1, 2, 4, 5])
    longest = rng.choice([12, 40])
    num_blocks = -(-2 * longest // block_size) + rng.randrange(0, 30)
    max_model_len = 2 * longest
    one_priority = seed % 2 == 0
    harness = Harness(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=rng.choice([1, 3, 8]),
        budget=rng.choice([1, 4, 16, 64]),
        max_model_len=max_model_len,
        max_prefill_beside_decodes=rng.choice([None, 1, 7]),
        prefix_caching=seed % 3 != 0,
        eos_token_ids=(0, 1),
    )
    scheduler = harness.scheduler
    arrival_step: dict[str, int] = {}
    requests: dict[str, EngineRequest] = {}
    aborted: set[str] = set()

    for step in range(500):
        if step < 400 and rng.random() < 0.4:
            request = random_request(
                rng, len(requests), longest=longest, priorities=[0] if one_priority else [-1, 0, 3]
            )
            harness.add(request)
            requests[request.request_id] = request
            arrival_step[request.request_id] = step
        if requests and rng.random() < 0.05:
            victim = rng.choice(list(requests))
            if delta := scheduler.abort(victim):
                harness.collect([delta])
                aborted.add(victim)
            scheduler.check_integrity()
        if scheduler.has_work:
            batch = harness.step()
            assert batch.sequences, "work, but an empty batch"
            assert batch.num_tokens <= scheduler.max_num_batched_tokens
            assert len(batch.sequences) <= scheduler.max_num_seqs
            lengths = [len(sequence.input.token_ids) > 1 for sequence in batch.sequences]
            assert lengths == sorted(lengths)
            assert all(sequence.input.token_ids for sequence in batch.sequences)
    harness.finish(max_steps=200_000)

    assert harness.last.keys() == requests.keys()
    assert scheduler.stats().kv_cache_usage == 0
    for request_id, request in requests.items():
        expected = reference_output(request, eos_token_ids=(0, 1), max_model_len=scheduler.max_model_len)
        if request_id in aborted:
            assert harness.outputs[request_id] == expected[: len(harness.outputs[request_id])]
        else:
            assert harness.outputs[request_id] == expected
            assert (request_id in harness.prompt_logprobs) == (request.params.prompt_logprobs is not None)
        returned = harness.outputs[request_id] if request.params.logprobs is not None else []
        assert harness.logprobs[request_id] == [logprobs_of(token) for token in returned]
        if (of_prompt := harness.prompt_logprobs.get(request_id)) is not None:
            assert of_prompt == (None, *map(logprobs_of, request.prompt_token_ids[1:]))


@pytest.mark.parametrize("seed", range(6))
def test_no_sequence_starves_under_overload(seed: int) -> None:
    """Under overload every request still ends within the maximum cost of all requests before it."""
    rng = random.Random(1000 + seed)
    harness = Harness(num_blocks=20, max_num_seqs=5, budget=rng.choice([5, 20]), max_model_len=40)
    unfinished: dict[str, tuple[int, int]] = {}  # cost (computed twice, at one token a step) and last step
    for step in range(1500):
        if step % 2 == 0:
            request = random_request(rng, step, longest=20, priorities=[0])
            harness.add(request)
            cost = 2 * (len(request.prompt_token_ids) + request.params.max_tokens)
            deadline = step + cost + sum(other for other, _ in unfinished.values())
            unfinished[request.request_id] = (cost, deadline)
        harness.step()
        unfinished = {name: due for name, due in unfinished.items() if name not in harness.last}
        assert all(step <= deadline for _, deadline in unfinished.values())
    stats = harness.scheduler.stats()
    assert stats.num_requests_waiting > 0 and stats.num_preemptions > 0, "it was no overload"
    assert len(harness.last) > 100
