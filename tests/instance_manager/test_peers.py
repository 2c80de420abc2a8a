"""What a Berth makes of what it hears of others."""

from __future__ import annotations

import pytest

from instance_manager.state.peers import Peers
from instance_manager.state.stores.records import InstanceRecord, Owner
from instance_manager.types import InstanceSpec, InstanceState

RUNNING, SLEEPING, STOPPED = InstanceState.RUNNING, InstanceState.SLEEPING, InstanceState.STOPPED


def record(instance_id: str, owner: str, state: InstanceState, profile: str | None = None) -> InstanceRecord:
    spec = InstanceSpec("path", "engine", profile=profile)
    return InstanceRecord(instance_id, state, owner, spec, "path", "served")


def heard(*records: InstanceRecord, alive: tuple[str, ...] = ("a", "b"), away: str = "") -> Peers:
    neighbours = Peers()
    neighbours.take(
        records, [*(Owner(name, 1, 5.0) for name in alive), *(Owner(name, 1, -1.0) for name in away)]
    )
    return neighbours


def name_of(owner: Owner | None) -> str | None:
    return None if owner is None else owner.owner


def test_a_model_has_its_profiles_name_or_its_own() -> None:
    neighbours = heard(record("one", "a", RUNNING), record("two", "b", RUNNING, "chosen"))
    assert name_of(neighbours.owner_running("path")) == name_of(neighbours.owner_running("served")) == "a"
    assert name_of(neighbours.owner_running("chosen")) == "b"
    assert neighbours.names_of("two") == ("chosen",)
    assert neighbours.owner_running("one") is None and neighbours.owner_of("three") is None
    assert sorted(neighbours.models()) == ["chosen", "path", "served"]


def test_one_that_runs_comes_first_and_each_in_turn() -> None:
    neighbours = heard(
        record("one", "a", SLEEPING), record("two", "b", RUNNING), record("three", "c", RUNNING), away="c"
    )
    assert {name_of(neighbours.owner_having("served")) for _ in range(4)} == {"b"}
    assert neighbours.models()["served"].instance_id == "two"
    both = heard(record("one", "a", RUNNING), record("two", "b", RUNNING))
    assert [name_of(both.owner_running("served")) for _ in range(4)] == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("records", "alive", "expected"),
    [
        ([record("one", "a", SLEEPING)], ("a",), "a"),
        ([record("one", "a", RUNNING), record("two", "b", SLEEPING)], ("b",), "b"),
        ([record("one", "a", RUNNING)], (), "a"),  # away, and told to be
        ([record("one", "a", STOPPED)], ("a",), None),
    ],
)
def test_who_has_what_runs_nowhere(
    records: list[InstanceRecord], alive: tuple[str, ...], expected: str | None
) -> None:
    neighbours = heard(*records, alive=alive)
    assert neighbours.owner_running("served") is None
    assert name_of(neighbours.owner_having("served")) == expected


def test_one_that_was_not_reached_is_passed_over_where_there_is_another_way() -> None:
    neighbours = heard(record("one", "a", RUNNING), record("two", "b", RUNNING))
    neighbours.avoid("a")
    assert {name_of(neighbours.owner_running("served")) for _ in range(4)} == {"b"}
    neighbours.avoid("b")
    assert neighbours.owner_running("served") is None
    assert neighbours.owner_having("served") is not None and neighbours.owner_of("one") is not None


def test_who_has_given_its_lease_back_is_away() -> None:
    owner = heard(record("one", "gone", STOPPED)).owner_of("one")
    assert owner is not None and owner.owner == "gone" and not owner.is_alive
