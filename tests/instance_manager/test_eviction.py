"""Which instances sleep or stop: one example for each rule. Sizes in GiB, times in seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from instance_manager.memory.devices import HOST
from instance_manager.memory.eviction import (
    CapacityPlan,
    Evict,
    EvictionPolicy,
    Fits,
    NeverFits,
    Wait,
    plan_capacity,
)
from instance_manager.memory.start_order import WaitingModel, next_to_start
from instance_manager.memory.victims import EvictionAction, EvictionStep, Resident

GIB = 1 << 30
GPU = "GPU-0"
NOW = 1000.0
POLICY = EvictionPolicy(min_residency_s=10.0, max_wait_s=60.0)
SLEEP1, SLEEP2, STOP = EvictionAction

Sizes = Mapping[str, float]


def sized(sizes: Sizes) -> dict[str, int]:
    return {device: int(gib * GIB) for device, gib in sizes.items()}


def resident(name: str, held: Sizes, asleep: Mapping[int, Sizes] | None = None, **fields: Any) -> Resident:
    """Idle, awake for long, last used at 0, unless `fields` say otherwise."""
    values: dict[str, Any] = {
        "level": 0,
        "in_flight": 0,
        "queued": 0,
        "pinned": False,
        "last_used": 0.0,
        "resident_since": 0.0,
        **fields,
    }
    levels = {level: sized(sizes) for level, sizes in (asleep or {}).items()}
    return Resident(
        instance_id=name, model_name=f"model-{name}", held=sized(held), held_asleep=levels, **values
    )


def gpu_resident(name: str, gib: float, **fields: Any) -> Resident:
    """On the GPU; at level 1 all of it is on the host, at level 2 nothing is left."""
    return resident(name, {GPU: gib}, {1: {HOST: gib}, 2: {}}, **fields)


def plan(
    need: Sizes,
    *residents: Resident,
    gpu: float = 10,
    host: float = 100,
    waited_s: float = 0.0,
    **options: Any,
) -> CapacityPlan:
    budgets = sized({GPU: gpu, HOST: host})
    return plan_capacity(
        sized(need), "new", NOW - waited_s, residents, budgets, NOW, options.get("policy", POLICY)
    )


def steps(planned: CapacityPlan) -> list[tuple[str, EvictionAction]]:
    assert isinstance(planned, Evict), planned
    return [(step.instance_id, step.action) for step in planned.steps]


def test_a_model_that_fits_evicts_nothing() -> None:
    assert plan({GPU: 4}, gpu_resident("a", 6)) == Fits()
    assert plan({}) == Fits()


def test_the_least_recently_used_sleeps_at_the_lightest_level_that_suffices() -> None:
    planned = plan({GPU: 5}, gpu_resident("a", 5, last_used=2), gpu_resident("b", 5, last_used=1))
    assert planned == Evict((EvictionStep("b", SLEEP1, must_drain=False),))


def test_without_host_memory_for_level_1_it_sleeps_at_level_2() -> None:
    assert steps(plan({GPU: 5}, gpu_resident("a", 8), host=7)) == [("a", SLEEP2)]


def test_host_memory_for_sleep_goes_to_the_most_recently_used() -> None:
    residents = gpu_resident("old", 5, last_used=1), gpu_resident("new", 5, last_used=2)
    assert steps(plan({GPU: 10}, *residents, host=5)) == [("old", SLEEP2), ("new", SLEEP1)]


def test_no_more_victims_than_needed() -> None:
    residents = [gpu_resident("abc"[i], size, last_used=i) for i, size in enumerate((1, 2, 7))]
    assert steps(plan({GPU: 7}, *residents)) == [("c", SLEEP1)]


def test_an_instance_that_cannot_sleep_is_stopped() -> None:
    assert steps(plan({GPU: 5}, resident("a", {GPU: 8}))) == [("a", STOP)]


def test_sleeping_instances_are_stopped_when_sleep_alone_is_not_enough() -> None:
    awake = resident("awake", {HOST: 5}, {1: {HOST: 4}}, last_used=1)
    sleeping = resident("sleeping", {HOST: 4}, {1: {HOST: 4}}, level=1, last_used=2)
    assert steps(plan({HOST: 2}, awake, sleeping, host=10)) == [("awake", SLEEP1)]
    assert steps(plan({HOST: 5}, awake, sleeping, host=10)) == [("sleeping", STOP)]
    assert steps(plan({HOST: 6}, awake, sleeping, host=10)) == [("awake", SLEEP1), ("sleeping", STOP)]


def test_a_sleeping_instance_may_sleep_deeper() -> None:
    sleeping = resident("a", {HOST: 4}, {1: {HOST: 4}, 2: {HOST: 1}}, level=1)
    assert steps(plan({HOST: 3}, sleeping, host=4)) == [("a", SLEEP2)]


def test_several_sleep_before_one_is_stopped() -> None:
    residents = [resident(name, {HOST: 5}, {1: {HOST: 3}}, last_used=i) for i, name in enumerate("ab")]
    assert steps(plan({HOST: 4}, *residents, host=10)) == [("a", SLEEP1), ("b", SLEEP1)]
    assert steps(plan({HOST: 5}, *residents, host=10)) == [("a", STOP)]


def test_steps_that_free_host_memory_come_before_steps_that_take_it() -> None:
    awake = resident("a", {GPU: 10}, {1: {HOST: 5}}, last_used=1)
    sleeping = resident("z", {HOST: 6, GPU: 1}, {1: {HOST: 6}}, level=1, last_used=2)
    assert steps(plan({GPU: 11}, awake, sleeping, gpu=11, host=6)) == [("z", STOP), ("a", SLEEP1)]


@pytest.mark.parametrize("busy", [{"in_flight": 1}, {"queued": 1}])
def test_a_busy_instance_is_spared_until_the_model_has_waited_max_wait_s(busy: dict[str, int]) -> None:
    victim = gpu_resident("a", 8, **busy)
    planned = plan({GPU: 5}, victim, waited_s=20)
    assert planned == Wait(NOW + 40, "new waits for memory: model-a in use")
    assert plan({GPU: 5}, victim, waited_s=60) == Evict((EvictionStep("a", SLEEP1, must_drain=True),))


def test_idle_instances_are_evicted_before_busy_ones_however_long_the_wait() -> None:
    idle, busy = gpu_resident("idle", 5, last_used=9), gpu_resident("busy", 5, in_flight=1, last_used=1)
    assert steps(plan({GPU: 5}, idle, busy, waited_s=100)) == [("idle", SLEEP1)]


def test_a_model_that_is_overdue_drains_victims_that_come_into_use_after_the_plan() -> None:
    """Else a victim that is idle at each plan and busy at each eviction could keep it waiting for ever."""
    idle = gpu_resident("a", 8)
    assert plan({GPU: 5}, idle, waited_s=59) == Evict((EvictionStep("a", SLEEP1, must_drain=False),))
    assert plan({GPU: 5}, idle, waited_s=60) == Evict((EvictionStep("a", SLEEP1, must_drain=True),))


def test_a_wait_without_bound_ends_with_a_lease() -> None:
    patient = EvictionPolicy(10.0, math.inf)
    assert plan({GPU: 5}, gpu_resident("a", 8, in_flight=1), policy=patient) == Wait(
        None, "new waits for memory: model-a in use"
    )


def test_an_instance_that_just_became_awake_stays_for_the_minimum_residency() -> None:
    recent = gpu_resident("a", 8, resident_since=NOW - 4)
    waited = plan({GPU: 5}, recent, waited_s=100)
    assert waited == Wait(NOW + 6, "new waits for memory: model-a awake for less than 10 s")
    assert steps(plan({GPU: 5}, gpu_resident("a", 8, resident_since=NOW - 10))) == [("a", SLEEP1)]


def test_the_wait_ends_at_the_first_moment_that_helps() -> None:
    useless = gpu_resident("small", 1, resident_since=NOW - 9)
    useful = gpu_resident("large", 9, resident_since=NOW - 2)
    planned = plan({GPU: 5}, useless, useful)
    assert isinstance(planned, Wait)
    assert planned.until == NOW + 8


def test_a_leaving_instance_is_waited_for_and_its_memory_counts_as_free() -> None:
    leaving = gpu_resident("a", 8, leaving=STOP)
    planned = plan({GPU: 5}, leaving)
    assert planned == Wait(None, "new waits until model-a has released its memory")
    other = gpu_resident("b", 2)
    assert steps(plan({GPU: 9}, leaving, other)) == [("b", SLEEP1)]
    going_to_sleep = gpu_resident("a", 8, leaving=SLEEP1)
    assert plan({GPU: 5, HOST: 5}, going_to_sleep, host=10) == Wait(
        None, "new waits until model-a has released its memory"
    )  # asleep it can be stopped


def test_an_overcommitted_device_that_is_not_needed_is_ignored() -> None:
    grown = resident("a", {HOST: 12})
    assert plan({GPU: 5}, grown, host=10) == Fits()


def test_pinned_instances_stay_and_are_named() -> None:
    planned = plan({GPU: 5}, gpu_resident("a", 6, pinned=True), gpu_resident("b", 4))
    assert planned == NeverFits(
        "new needs 5.00 GiB of memory of GPU-0, whose budget is 10.00 GiB; "
        "of that model-a (pinned) keeps 6.00 GiB"
    )


def test_the_models_own_instances_stay() -> None:
    own = Resident("new-1", "new", 0, sized({HOST: 6}), {}, 0, 0, False, 0.0, 0.0)
    planned = plan({HOST: 6}, own, host=10)
    assert planned == NeverFits(
        "new needs 6.00 GiB of host memory, whose budget is 10.00 GiB; of that new (new-1) keeps 6.00 GiB"
    )


def test_a_need_beyond_the_budget_never_fits() -> None:
    assert plan({GPU: 11, HOST: 1}, gpu_resident("a", 6)) == NeverFits(
        "new needs 11.00 GiB of memory of GPU-0, whose budget is 10.00 GiB"
    )
    planned = plan({"GPU-gone": 1})
    assert planned == NeverFits("new needs 1.00 GiB of memory of GPU-gone, whose budget is 0.00 GiB")


def test_the_longest_waiting_model_starts_next() -> None:
    assert next_to_start([]) is None
    assert next_to_start([WaitingModel("a", 5.0), WaitingModel("b", 3.0)]) == "b"
    assert next_to_start([WaitingModel("a", 5.0, queued=1), WaitingModel("b", 5.0, queued=2)]) == "b"


def test_entries_of_a_model_count_together() -> None:
    waiting = [WaitingModel("a", 5.0), WaitingModel("b", 3.0), WaitingModel("a", 2.0)]
    assert next_to_start(waiting) == "a"


def test_priority_is_worth_a_bounded_wait() -> None:
    late, urgent = WaitingModel("late", 0.0, priority=0), WaitingModel("urgent", 9.0, priority=-1)
    assert next_to_start([late, urgent], ageing_s=10.0) == "urgent"
    much_later = WaitingModel("urgent", 11.0, priority=-1)
    assert next_to_start([late, much_later], ageing_s=10.0) == "late"
