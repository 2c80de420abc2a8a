"""What a node concludes from its peers' records."""

from __future__ import annotations

import pytest

from instance_manager.state.peers import Peers
from instance_manager.state.stores.records import InstanceRecord, Owner
from instance_manager.types import InstanceSpec, InstanceState

RUNNING, SLEEPING, STOPPED = InstanceState.RUNNING, InstanceState.SLEEPING, InstanceState.STOPPED


def record(instance_id: str, owner: str, state: InstanceState, profile: str | None = None) -> InstanceRecord:
    spec = InstanceSpec("path", "engine", profile=profile)
    return InstanceRecord(instance_id, state, owner, spec, "path", "served")


def peers_of(*records: InstanceRecord, alive: tuple[str, ...] = ("a", "b"), away: str = "") -> Peers:
    peers = Peers()
    peers.replace(
        records, [*(Owner(name, 1, 5.0) for name in alive), *(Owner(name, 1, -1.0) for name in away)]
    )
    return peers


def name_of(owner: Owner | None) -> str | None:
    return None if owner is None else owner.owner


def test_a_model_has_its_profiles_name_or_its_own() -> None:
    peers = peers_of(record("one", "a", RUNNING), record("two", "b", RUNNING, "chosen"))
    assert name_of(peers.owner_running("path")) == name_of(peers.owner_running("served")) == "a"
    assert name_of(peers.owner_running("chosen")) == "b"
    assert peers.names_of("two") == ("chosen",)
    assert peers.owner_running("one") is None and peers.owner_of("three") is None
    assert sorted(peers.models()) == ["chosen", "path", "served"]


def test_running_instances_come_first_and_nodes_take_turns() -> None:
    peers = peers_of(
        record("one", "a", SLEEPING), record("two", "b", RUNNING), record("three", "c", RUNNING), away="c"
    )
    assert {name_of(peers.owner_having("served")) for _ in range(4)} == {"b"}
    assert peers.models()["served"].instance_id == "two"
    both = peers_of(record("one", "a", RUNNING), record("two", "b", RUNNING))
    assert [name_of(both.owner_running("served")) for _ in range(4)] == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("records", "alive", "expected"),
    [
        ([record("one", "a", SLEEPING)], ("a",), "a"),
        ([record("one", "a", RUNNING), record("two", "b", SLEEPING)], ("b",), "b"),
        ([record("one", "a", RUNNING)], (), "a"),  # away, and known to be
        ([record("one", "a", STOPPED)], ("a",), None),
    ],
)
def test_a_model_that_runs_nowhere_is_found_where_it_could_run(
    records: list[InstanceRecord], alive: tuple[str, ...], expected: str | None
) -> None:
    peers = peers_of(*records, alive=alive)
    assert peers.owner_running("served") is None
    assert name_of(peers.owner_having("served")) == expected


def test_an_unreachable_node_is_avoided_if_another_serves_the_model() -> None:
    peers = peers_of(record("one", "a", RUNNING), record("two", "b", RUNNING))
    peers.avoid("a")
    assert {name_of(peers.owner_running("served")) for _ in range(4)} == {"b"}
    peers.avoid("b")
    assert peers.owner_running("served") is None
    assert peers.owner_having("served") is not None and peers.owner_of("one") is not None


def test_a_node_that_has_released_its_lease_is_away() -> None:
    owner = peers_of(record("one", "gone", STOPPED)).owner_of("one")
    assert owner is not None and owner.owner == "gone" and not owner.is_alive
