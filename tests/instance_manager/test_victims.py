"""Which instances may have to go, and in which order. Pure: times are parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest

from instance_manager.memory.victims import (
    EvictionAction,
    EvictionStep,
    Resident,
    expired,
    may_go,
    plan_scale_down,
)

NOW = 1000.0
STOP = EvictionAction.STOP


def resident(name: str, **fields: Any) -> Resident:
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
    return Resident(name, "m", held={}, held_asleep={}, **values)


SPARED = [{"pinned": True}, {"leaving": STOP}, {"resident_since": math.inf}]
"""Pinned, stopping, starting."""


def test_idle_goes_before_busy_asleep_before_awake_and_old_before_new() -> None:
    in_order = [
        resident("asleep", level=1, last_used=9),
        resident("old", last_used=1),
        resident("new", last_used=2),
        resident("queued", queued=1, last_used=0),
        resident("busier", in_flight=2, last_used=0),
    ]
    assert may_go(reversed(in_order), NOW) == in_order


@pytest.mark.parametrize("spared", SPARED)
def test_what_is_spared_is_spared_whatever_the_need(spared: dict[str, Any]) -> None:
    one, other = resident("a", idle_timeout_s=5, **spared), resident("b", idle_timeout_s=5, last_used=500)
    assert may_go([one, other], NOW) == [other]
    assert expired([one, other], NOW) == [other]
    assert plan_scale_down([one, other], NOW) == EvictionStep("b", STOP, must_drain=False)
    assert plan_scale_down([one], NOW) is None


def test_the_minimum_residency_counts_for_those_awake() -> None:
    recent, asleep = resident("a", resident_since=NOW - 9), resident("b", level=1, resident_since=NOW - 9)
    assert may_go([recent, asleep], NOW, min_residency_s=10) == [asleep]
    assert may_go([recent, asleep], NOW + 1, min_residency_s=10) == [asleep, recent]


def test_of_busy_replicas_the_least_used_is_drained() -> None:
    busy = [resident("a", in_flight=3), resident("b", in_flight=1, last_used=9), resident("c", in_flight=2)]
    assert plan_scale_down(busy, NOW) == EvictionStep("b", STOP, must_drain=True)
    assert plan_scale_down([*busy, resident("idle", last_used=NOW)], NOW) == EvictionStep(
        "idle", STOP, must_drain=False
    )


@pytest.mark.parametrize("busy", [{"in_flight": 1}, {"queued": 1}])
def test_a_victim_that_has_come_into_use_goes_only_if_it_must_drain(busy: dict[str, int]) -> None:
    for must_drain in (False, True):
        step = EvictionStep("a", STOP, must_drain=must_drain)
        assert step.still_applies(resident("a"))
        assert step.still_applies(resident("a", **busy)) is must_drain


@pytest.mark.parametrize("spared", SPARED)
def test_a_victim_that_was_pinned_or_is_starting_meanwhile_stays(spared: dict[str, Any]) -> None:
    assert not EvictionStep("a", STOP, must_drain=True).still_applies(resident("a", **spared))
