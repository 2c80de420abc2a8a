"""How many replicas a model should have, by the requests in flight and waiting in the last seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instance_manager.fleet.profiles import ModelProfile
from instance_manager.fleet.scaling import ScalePolicy, wanted_replicas

POLICY = ScalePolicy(per_replica=10, window_samples=6, up_samples=3)


def wanted(samples: list[int], num_awake: int, *, least: int = 0, most: int = 4, limit: int = 0) -> int:
    profile = ModelProfile("m", "m", "engine", min_replicas=least, max_replicas=most, concurrency_limit=limit)
    return wanted_replicas(profile, samples, num_awake, POLICY)


@pytest.mark.parametrize(
    ("samples", "num_awake", "expected"),
    [
        ([], 1, 1),
        ([11, 11], 1, 1),  # too few samples
        ([11, 11, 11], 1, 2),
        ([10, 99, 99], 1, 1),  # one sample needed no more
        ([99, 99, 99], 1, 2),  # one at a time
        ([5, 0, 0, 11, 11, 11], 1, 2),  # earlier samples don't count
        ([11, 11, 11, 0, 0, 0], 1, 1),
        ([20, 20, 20], 2, 2),
        ([21, 21, 21], 2, 3),
    ],
)
def test_one_more_when_the_latest_samples_all_ask_for_it(
    samples: list[int], num_awake: int, expected: int
) -> None:
    assert wanted(samples, num_awake) == expected


@pytest.mark.parametrize(
    ("samples", "num_awake", "expected"),
    [
        ([0] * 5, 3, 3),  # no whole window yet
        ([0] * 6, 3, 2),
        ([20] * 6, 3, 2),
        ([20] * 5 + [21], 3, 3),  # the third was needed once
        ([0] * 6, 1, 1),  # the last one ends by its idle time-out, not here
        ([0] * 6, 0, 0),
    ],
)
def test_one_less_when_the_last_was_not_needed_for_a_whole_window(
    samples: list[int], num_awake: int, expected: int
) -> None:
    assert wanted(samples, num_awake) == expected


def test_the_profiles_bounds_hold_whatever_the_load() -> None:
    assert wanted([99] * 6, 4, most=4) == 4
    assert wanted([0] * 6, 2, least=2) == 2
    assert wanted([], 0, least=3) == 3
    assert wanted([0] * 6, 5, most=2) == 2  # the bound was lowered


def test_a_replica_serves_as_many_as_its_limit_says() -> None:
    assert wanted([5] * 3, 1, limit=4) == 2
    assert wanted([5] * 3, 1, limit=5) == 1


@given(
    st.lists(st.integers(0, 200), max_size=10),
    st.integers(0, 8),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_it_stays_within_the_bounds_and_moves_by_one_step(
    samples: list[int], num_awake: int, least: int, more: int
) -> None:
    most = max(1, least + more)
    number = wanted(samples, num_awake, least=least, most=most)
    assert least <= number <= most
    if max(least, 1) <= num_awake <= most:
        assert abs(number - num_awake) <= 1
        assert number >= 1
