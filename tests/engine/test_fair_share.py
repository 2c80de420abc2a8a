"""One request of many sequences beside others: its share of a step, and what it gives back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.batch import Batch
from engine.core.sequence import SequenceState
from engine.core.types import EngineRequest, SamplingParams
from tests.engine.fake_runner import make_request, reference_output
from tests.engine.test_scheduler import Harness, shape


def choices(
    number: int, prompt: Iterable[int] = range(5), *, max_tokens: int = 30, group: str = "many"
) -> list[EngineRequest]:
    """The sequences of a request with `n`: the same prompt, different seeds."""
    tokens = list(prompt)
    return [
        make_request(
            f"{group}{seed}", tokens, group=group, params=SamplingParams(max_tokens=max_tokens, seed=seed)
        )
        for seed in range(number)
    ]


def prompts(number: int, length: int, *, max_tokens: int = 4, group: str = "many") -> list[EngineRequest]:
    """The sequences of a request with several prompts; no two begin with the same token."""
    return [
        make_request(f"{group}{index}", [100 + index, *range(1, length)], group=group, max_tokens=max_tokens)
        for index in range(number)
    ]


def count(batch: Batch, group: str = "many") -> int:
    return sum(sequence.request_id.startswith(group) for sequence in batch.sequences)


def tokens_of(batch: Batch, name: str) -> int:
    """The number of prompt tokens."""
    return sum(num for each, num in shape(batch) if each.startswith(name) and num > 1)


def steps_until_first_token(harness: Harness, name: str, most: int = 100) -> int:
    for step in range(1, most + 1):
        harness.step()
        if harness.outputs[name]:
            return step
    raise AssertionError(f"{name} has no token after {most} steps")


def assert_answers(harness: Harness, requests: Iterable[EngineRequest]) -> None:
    for request in requests:
        assert harness.outputs[request.request_id] == reference_output(request), request.request_id


# Alone


def test_a_request_alone_gets_every_slot_and_every_token() -> None:
    harness = Harness(max_num_seqs=8, budget=64, num_blocks=256)
    many = choices(20)
    harness.add(*many)
    harness.step()
    assert count(harness.step()) == 8
    harness.finish()
    assert harness.scheduler.stats().num_preemptions == 0
    assert_answers(harness, many)

    harness.add(*prompts(3, 60))
    assert shape(harness.step()) == [("many0", 60), ("many1", 4)]


# Slots


def test_a_small_request_gets_a_slot_at_once_beside_one_that_has_them_all() -> None:
    harness = Harness(max_num_seqs=8, num_blocks=256)
    many, small = choices(8), make_request("small", [50, 51])
    harness.add(*many)
    for _ in range(3):
        harness.step()
    harness.add(small)
    batch = harness.step()
    assert count(batch, "small") == 1
    assert count(batch) == 7, "it gives back no more than is needed"
    assert "many7" not in dict(shape(batch)), "the sequence due last is preempted"
    harness.finish()
    assert_answers(harness, [*many, small])


def test_a_surplus_sequence_returns_only_once_its_request_is_alone() -> None:
    harness = Harness(max_num_seqs=8, num_blocks=256)
    harness.add(*choices(8))
    for _ in range(3):
        harness.step()
    small = [make_request(f"small{number}", [50 + number], max_tokens=5) for number in range(3)]
    harness.add(*small)
    slots = []
    while len(harness.last) < 3:
        slots.append(count(harness.step()))
    assert set(slots) == {6}, "its share, while the others are there"
    assert harness.scheduler.stats().num_preemptions == 2
    assert count(harness.step()) == 8
    harness.finish()
    assert harness.scheduler.stats().num_preemptions == 2


def test_beside_another_a_request_gets_no_more_than_its_share() -> None:
    harness = Harness(max_num_seqs=8, num_blocks=256)
    harness.add(make_request("small", [50], max_tokens=12), *choices(40, max_tokens=3))
    slots = []
    while "small" not in harness.last:
        slots.append(count(harness.step()))
    assert max(slots) == 6
    assert harness.scheduler.stats().num_preemptions == 0


def test_two_large_requests_share_the_slots() -> None:
    harness = Harness(max_num_seqs=8, num_blocks=256)
    one, two = choices(16, group="one", max_tokens=9), choices(16, [60, 61], group="two", max_tokens=9)
    harness.add(*one)
    harness.step()
    harness.step()
    harness.add(*two)
    harness.step()
    batch = harness.step()
    assert (count(batch, "one"), count(batch, "two")) == (6, 2)
    preempted = harness.scheduler.stats().num_preemptions
    harness.finish()
    assert harness.scheduler.stats().num_preemptions == preempted == 2
    assert_answers(harness, [*one, *two])


@pytest.mark.parametrize("is_one_prompt", [True, False], ids=["choices", "prompts"])
def test_no_slot_is_given_back_to_a_request_that_can_not_use_it_yet(is_one_prompt: bool) -> None:
    """Of the other's choices or long prompts only the first can run at first: a step has few tokens."""
    harness = Harness(max_num_seqs=8, num_blocks=512, budget=16, max_model_len=100)
    many = choices(8, max_tokens=60)
    harness.add(*many)
    harness.step()
    harness.step()
    other = choices(4, range(40, 80), group="other") if is_one_prompt else prompts(4, 40, group="other")
    harness.add(*other)
    slots = []
    while not harness.outputs["other0"]:
        slots.append(count(harness.step()))
    assert set(slots[:-1]) == {7}
    harness.step()
    assert count(harness.step()) == 6
    harness.finish()
    assert_answers(harness, [*many, *other])


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 4])
def test_few_slots_are_shared_too(max_num_seqs: int) -> None:
    harness = Harness(max_num_seqs=max_num_seqs, num_blocks=256)
    many, small = choices(6, max_tokens=20), make_request("small", [50], max_tokens=2)
    harness.add(*many)
    harness.step()
    harness.add(small)
    most = 3 if max_num_seqs > 1 else 60  # a single slot can't be shared
    steps_until_first_token(harness, "small", most)
    harness.finish()
    assert_answers(harness, [*many, small])


def test_outputs_are_the_same_without_a_prefix_cache() -> None:
    harness = Harness(max_num_seqs=4, num_blocks=256, prefix_caching=False)
    many = prompts(4, 9, max_tokens=20)
    small = [make_request(f"small{number}", [number], max_tokens=2) for number in range(5)]
    harness.add(*many)
    for request in small:
        harness.step()
        harness.add(request)
        harness.step()
    assert harness.scheduler.stats().num_preemptions > 0
    harness.finish()
    assert_answers(harness, [*many, *small])


def test_skipped_sequences_do_not_block_others() -> None:
    """Thousands may wait before a small request: the scheduler searches past all of them."""
    harness = Harness(max_num_seqs=4, num_blocks=256)
    harness.add(*(replace(one, arrival_time=-100.0) for one in choices(300)))
    harness.step()
    harness.step()
    harness.add(make_request("small", [50]))
    assert steps_until_first_token(harness, "small") == 1


# Tokens of prompts


def test_a_short_prompt_starts_in_the_next_step_beside_a_long_one() -> None:
    harness = Harness(num_blocks=1100, block_size=32, budget=2048, max_model_len=32_768)
    harness.add(make_request("long", range(30_000)))
    assert shape(harness.step()) == [("long", 2048)]
    harness.add(make_request("short", range(40_000, 40_010)))
    assert shape(harness.step()) == [("long", 2038), ("short", 10)]
    assert harness.outputs["short"]


def test_beside_another_prompt_a_request_gets_its_share_of_tokens() -> None:
    harness = Harness(num_blocks=1000, budget=64, max_model_len=1000)
    harness.add(*prompts(3, 200), make_request("other", range(500, 700)))
    for _ in range(3):
        batch = harness.step()
        assert (tokens_of(batch, "many"), tokens_of(batch, "other")) == (48, 16)


def test_no_token_is_left_unused() -> None:
    """Neither beside decodes of others, nor if waiting sequences can't run."""
    harness = Harness(num_blocks=1000, budget=64, max_model_len=1000, max_num_seqs=6)
    harness.add(make_request("other", [500], max_tokens=50))
    harness.step()
    harness.add(*prompts(9, 40))
    for _ in range(2):
        assert harness.step().num_tokens == 64


def test_a_budget_of_one_token_is_enough() -> None:
    harness = Harness(budget=64, max_prefill_beside_decodes=1)
    harness.add(make_request("first", [1], max_tokens=40))
    harness.step()
    requests = [make_request("a", range(10, 20)), make_request("b", range(20, 30))]
    harness.add(*requests)
    harness.finish()
    assert_answers(harness, requests)


def test_prompts_with_logprobs_do_not_block_others() -> None:
    """A step computes 20 of these, and hundreds of such prompts may wait."""
    harness = Harness(max_num_seqs=8, num_blocks=512, budget=128, max_model_len=100)
    params = SamplingParams(max_tokens=2, prompt_logprobs=100)
    harness.add(*(replace(one, params=params) for one in prompts(200, 60)))
    harness.step()
    harness.add(make_request("small", [50, 51, 52], arrival_time=1000.0))
    assert steps_until_first_token(harness, "small") == 1


# Turns


def test_a_small_request_does_not_wait_for_a_hundred_prompts() -> None:
    harness = Harness(max_num_seqs=8, num_blocks=4096, budget=64, max_model_len=1000)
    harness.add(*prompts(100, 60))
    for _ in range(3):
        harness.step()
    harness.add(make_request("small", [50, 51, 52]))
    assert steps_until_first_token(harness, "small") == 1
    harness.finish()


def test_where_blocks_are_short_a_small_request_comes_before_the_rest_of_a_large_one() -> None:
    """The cache can hold two of its prompts at a time."""
    harness = Harness(max_num_seqs=8, num_blocks=128, budget=2048, max_model_len=512)
    harness.add(*prompts(100, 200, max_tokens=9))
    harness.step()
    harness.add(make_request("small", range(50, 170), arrival_time=0.3))
    while not harness.outputs["small"]:
        harness.step()
        assert len(harness.last) <= 4


def test_the_prompts_of_a_request_run_in_their_order() -> None:
    harness = Harness(max_num_seqs=1, num_blocks=256)
    harness.add(*prompts(20, 9, max_tokens=1))
    order = [shape(harness.step())[0][0] for _ in range(20)]
    assert order == [f"many{number}" for number in range(20)]


def test_a_request_of_many_prompts_keeps_its_priority() -> None:
    """However many there are, the last precedes less urgent requests."""
    harness = Harness(max_num_seqs=1, num_blocks=4096, budget=4096, max_model_len=8000)
    urgent = [replace(one, priority=-1) for one in prompts(20, 7000, max_tokens=1)]
    harness.add(make_request("small", [50]), *urgent)
    order = []
    while harness.scheduler.has_work:
        name = shape(harness.step())[0][0]
        if name not in order:
            order.append(name)
    assert order == [*(one.request_id for one in urgent), "small"]


# Whatever comes


def test_large_and_small_requests_do_not_starve_each_other() -> None:
    """Large and small requests arrive endlessly: all end, the small ones soon."""
    harness = Harness(max_num_seqs=4, num_blocks=64, budget=16, max_model_len=64)
    added: dict[str, int] = {}
    requests: list[EngineRequest] = []
    for step in range(1200):
        new: list[EngineRequest] = []
        if step % 60 == 0:
            new = choices(6, range(step, step + 9), max_tokens=8, group=f"large{step}-")
        if step % 12 == 0:
            new = [*new, make_request(f"small{step}", [step], max_tokens=3)]
        for request in new:
            added[request.request_id] = step
            requests.append(replace(request, arrival_time=float(step)))
            harness.add(requests[-1])
        harness.step()
        for name, since in added.items():
            most = 15 if name.startswith("small") else 300
            assert name in harness.last or step - since < most, f"{name} has waited since {since}"
    harness.finish()
    assert_answers(harness, requests)


class Watch:
    """Steps a scheduler, and checks that no request has more than its share while another needs it."""

    def __init__(self, harness: Harness, *, has_spare_blocks: bool) -> None:
        self.harness = harness
        self.has_spare_blocks = has_spare_blocks
        self.requests: list[EngineRequest] = []
        self.slots: Counter[str] = Counter()
        self.ran: set[SequenceState] = set()

    def group_of(self, request_id: str) -> str:
        return next(one.group for one in self.requests if one.request_id == request_id)

    def step(self) -> None:
        scheduler, budget = self.harness.scheduler, self.harness.scheduler.max_num_batched_tokens
        live = {one.group for one in self.requests if one.request_id not in self.harness.last}
        num_preemptions = scheduler.stats().num_preemptions
        batch = scheduler.schedule()
        share = max(1, scheduler.max_num_seqs * 3 // 4)
        slots = Counter(sequence.group.name for sequence in scheduler._running)
        num_unused = budget - batch.num_tokens - (scheduler.stats().num_preemptions - num_preemptions)
        for group, number in slots.items():
            if len(live) > 1 and number > share:
                assert number <= self.slots[group], "it has taken surplus slots"
                if num_unused > 0 and self.has_spare_blocks:
                    ready = {tuple(one.token_ids) for one in scheduler._waiting if one.group.name != group}
                    ready -= {tuple(one.request.prompt_token_ids) for one in scheduler._running}
                    assert not ready, "others wait only for a slot"
        prompts = Counter[str]()
        for sequence in batch.sequences:
            if len(sequence.input.token_ids) > 1:
                prompts[self.group_of(sequence.request_id)] += len(sequence.input.token_ids)
        hungry = [
            one
            for one in scheduler._running
            if one.num_remaining > 1 and one in self.ran and one.group.name not in prompts
        ]
        if hungry:
            assert all(number <= max(1, budget * 3 // 4) for number in prompts.values())
        self.harness.collect(scheduler.update(batch, self.harness.runner.execute(batch)))
        scheduler.check_integrity()
        self.ran = set(scheduler._running)
        self.slots = Counter(sequence.group.name for sequence in scheduler._running)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 12),  # sequences
            st.integers(1, 20),  # tokens of the prompt
            st.booleans(),  # `n`, or as many prompts
            st.integers(1, 9),  # tokens of the answer
            st.integers(0, 12),  # steps before the next comes
        ),
        min_size=1,
        max_size=7,
    ),
    st.sampled_from([1, 2, 3, 5, 8]),
    st.sampled_from([8, 20, 100]),
    st.sampled_from([0, 200]),
)
@example([(8, 16, False, 8, 7), (2, 4, False, 1, 0)], 8, 20, 200)  # r0-7 gives back slot and tokens
def test_no_request_has_more_than_its_share_and_all_end(
    arrivals: list[tuple[int, int, bool, int, int]], max_num_seqs: int, budget: int, spare_blocks: int
) -> None:
    harness = Harness(num_blocks=8 + spare_blocks, max_num_seqs=max_num_seqs, budget=budget, max_model_len=30)
    watch = Watch(harness, has_spare_blocks=spare_blocks > 0)
    for number, (sequences, length, is_one_prompt, max_tokens, steps) in enumerate(arrivals):
        group = f"r{number}-"
        if is_one_prompt:
            made = choices(sequences, range(length), max_tokens=max_tokens, group=group)
        else:
            made = prompts(sequences, length, max_tokens=max_tokens, group=group)
        watch.requests += made
        harness.add(*made)
        for _ in range(steps):
            if harness.scheduler.has_work:
                watch.step()
    for _ in range(5000):
        if not harness.scheduler.has_work:
            break
        watch.step()
    assert len(harness.last) == len(watch.requests)
    assert_answers(harness, watch.requests)
