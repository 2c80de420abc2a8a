"""The eviction policy over random traces, in a simulated world.

Never over budget, never a leased or pinned victim: eviction_world.py checks that at each step. Here: no model
starves, and nothing thrashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instance_manager.memory.devices import HOST, SLOT, Device
from instance_manager.memory.eviction import EvictionPolicy
from instance_manager.memory.victims import EvictionAction
from tests.instance_manager.eviction_world import ACT_S, GPU, Model, Request, World

MAX_SERVICE_S = 8.0
KINDS = st.tuples(st.integers(1, 8), st.integers(0, 6), st.booleans(), st.booleans())
BUDGETS = st.fixed_dictionaries({HOST: st.integers(5, 30), GPU: st.integers(5, 24), SLOT: st.integers(1, 6)})
POLICIES = st.builds(EvictionPolicy, min_residency_s=st.floats(0, 20), max_wait_s=st.floats(0, 40))
TRACES = st.lists(
    st.tuples(st.floats(0, 5), st.integers(0, 5), st.floats(0.01, MAX_SERVICE_S)), min_size=1, max_size=50
)


def models(kinds: list[tuple[int, int, bool, bool]], num_pinned: int = 0) -> list[Model]:
    return [Model(f"m{i}", *kind, is_pinned=i < num_pinned) for i, kind in enumerate(kinds)]


def trace(steps: list[tuple[float, int, float]], num_models: int) -> list[Request]:
    requests, now = [], 0.0
    for gap_s, model, service_s in steps:
        now += gap_s
        requests.append(Request(f"m{model % num_models}", now, service_s))
    return requests


def fits_beside_pinned(model: Model, all_models: list[Model], budgets: Mapping[Device, int]) -> bool:
    fixed = [m for m in all_models if m.is_pinned and m is not model]
    return all(
        num_bytes + sum(m.held_at(0).get(device, 0) for m in fixed) <= budgets[device]
        for device, num_bytes in model.held_at(0).items()
    )


def longest_wait(num_models: int, policy: EvictionPolicy) -> float:
    """Every other model may come first once; each turn waits, drains, and evicts them all."""
    turn_s = policy.max_wait_s + policy.min_residency_s + MAX_SERVICE_S
    return (num_models + 1) * (turn_s + num_models * ACT_S["evict"] + ACT_S["start"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(KINDS, min_size=2, max_size=6),
    num_pinned=st.integers(0, 1),
    budgets=BUDGETS,
    policy=POLICIES,
    steps=TRACES,
)
def test_every_request_is_served_in_bounded_time_or_never_fits(
    kinds: list[tuple[int, int, bool, bool]],
    num_pinned: int,
    budgets: dict[Device, int],
    policy: EvictionPolicy,
    steps: list[tuple[float, int, float]],
) -> None:
    all_models = models(kinds, num_pinned)
    if not all(fits_beside_pinned(m, [], budgets) for m in all_models if m.is_pinned):
        all_models = models(kinds)  # what doesn't fit can't have been pinned
    world = World(all_models, budgets, policy)
    requests = trace(steps, len(all_models))
    world.run(requests)
    possible = {m.name for m in all_models if m.is_pinned or fits_beside_pinned(m, all_models, budgets)}
    for request in requests:
        assert (request.waited_s is not None) == (request.model in possible), world.refused
    waits = [request.waited_s for request in requests if request.waited_s is not None]
    assert max(waits, default=0) <= longest_wait(len(all_models), policy)


@pytest.mark.parametrize("can_sleep", [True, False])
@pytest.mark.parametrize("num_models", [2, 3])
def test_alternating_models_do_not_thrash(num_models: int, can_sleep: bool) -> None:
    """A-B-A-B without a pause, memory for one: each stays for a while, so swaps are few and waits short."""
    policy = EvictionPolicy(min_residency_s=10.0, max_wait_s=15.0)
    world = World(
        [Model(f"m{i}", 6, 2, True, can_sleep) for i in range(num_models)], {GPU: 12, HOST: 40}, policy
    )
    requests = trace([(0.1, i, 0.3) for i in range(3000)], num_models)  # five minutes
    world.run(requests)
    duration_s = world.now
    assert duration_s < 600
    assert world.num_starts <= duration_s / policy.min_residency_s + 1
    assert world.num_starts >= num_models
    by_model: dict[str, list[float]] = {}
    for time, name, _ in world.evictions:
        by_model.setdefault(name, []).append(time)
    for times in by_model.values():
        assert all(b - a >= policy.min_residency_s for a, b in pairwise(times))
    waits = [request.waited_s for request in requests]
    assert all(w is not None and w <= longest_wait(num_models, policy) for w in waits)


def test_two_of_three_stay_where_two_fit() -> None:
    """Without pressure from a third model nothing is ever evicted."""
    world = World([Model(f"m{i}", 3, 1, False, True) for i in range(3)], {HOST: 10, GPU: 0}, EvictionPolicy())
    world.run(trace([(0.5, i % 2, 1.0) for i in range(200)], 3))
    assert world.evictions == []
    assert world.num_starts == 2


def test_sleep_comes_before_stop() -> None:
    """One at a time on the GPU, all asleep on the host: after the first round nothing starts cold."""
    policy = EvictionPolicy(min_residency_s=1.0, max_wait_s=5.0)
    world = World([Model(f"m{i}", 6, 2, True, True) for i in range(3)], {GPU: 12, HOST: 40}, policy)
    world.run(trace([(10.0, i, 0.5) for i in range(30)], 3))
    assert {action for _, _, action in world.evictions} == {EvictionAction.SLEEP1}
    assert world.num_starts == 30


@pytest.mark.parametrize("can_sleep", [True, False])
def test_slots_are_shared_like_memory(can_sleep: bool) -> None:
    """Three models on two slots, with memory for all: each gets its turn, and stays for a while."""
    policy = EvictionPolicy(min_residency_s=2.0, max_wait_s=6.0)
    world = World(
        [Model(f"m{i}", 1, 1, False, can_sleep) for i in range(3)], {HOST: 90, GPU: 0, SLOT: 2}, policy
    )
    requests = trace([(0.2, i, 1.5) for i in range(600)], 3)
    world.run(requests)
    waits = [request.waited_s for request in requests]
    assert all(wait is not None and wait <= longest_wait(3, policy) for wait in waits)
    assert {action for _, _, action in world.evictions} == {EvictionAction.STOP}, "sleep frees no place"
    assert len(world.evictions) <= world.now / policy.min_residency_s + 1
