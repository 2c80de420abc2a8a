"""When an instance was last used outlives Berth, and costs few writes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from instance_manager.config import ManagerConfig
from instance_manager.events import EventLog
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.instance_record import instance_of
from instance_manager.lifecycle.last_use import LAST_USE_PRECISION_S, last_used_at
from instance_manager.manager import InstanceManager
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import InstanceState
from tests.instance_manager.conftest import fake, running
from tests.instance_manager.test_recovery_rules import RECORD

HOUR_S = 3600.0
STATES_WITH_PROCESS = [state for state in InstanceState if not state.is_terminal]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def one_running(config: ManagerConfig, clock: Clock) -> AsyncIterator[tuple[InstanceManager, Instance]]:
    manager = InstanceManager(config, clock=clock)
    async with manager.run():
        one = await running(manager, fake(name="one", timeout_s=HOUR_S))
        manager._last_use.look()
        yield manager, one


def use(one: Instance) -> None:
    lease = one.gate.try_acquire()
    assert lease is not None
    lease.release()


async def stored(manager: InstanceManager) -> InstanceRecord:
    """Once everything that was marked is written."""
    await manager.state.keeper._idle.wait()
    record = await manager.state.store.get("one")
    assert record is not None
    return record


async def test_under_load_an_instance_is_stored_once_a_minute(config: ManagerConfig) -> None:
    clock = Clock()
    async with one_running(config, clock) as (manager, one):
        before = (await stored(manager)).version
        for _ in range(600):
            for _ in range(50):
                use(one)
            clock.now += 1.0
            manager._last_use.look()
            record = await stored(manager)
            assert time.time() - record.last_active <= LAST_USE_PRECISION_S
        assert record.version - before == 10, "30,000 requests in ten minutes"


async def test_an_idle_instance_is_not_stored_again(config: ManagerConfig) -> None:
    clock = Clock()
    async with one_running(config, clock) as (manager, _):
        before = (await stored(manager)).version
        for _ in range(600):
            clock.now += 5.0
            manager._last_use.look()
        assert (await stored(manager)).version == before


async def test_the_first_use_after_an_idle_time_is_stored_at_once(config: ManagerConfig) -> None:
    """Otherwise an engine that Berth's end finds in use would seem to have been idle for all that time."""
    clock = Clock()
    async with one_running(config, clock) as (manager, one):
        clock.now += HOUR_S
        use(one)
        manager._last_use.look()
        assert time.time() - (await stored(manager)).last_active < LAST_USE_PRECISION_S


async def test_a_request_in_flight_is_use_until_now(config: ManagerConfig) -> None:
    clock = Clock()
    async with one_running(config, clock) as (manager, one):
        lease = one.gate.try_acquire()
        assert lease is not None
        for _ in range(10):
            clock.now += HOUR_S / 10
            manager._last_use.look()
        assert time.time() - (await stored(manager)).last_active < LAST_USE_PRECISION_S
        lease.release()


async def test_a_keep_alive_that_changes_nothing_is_not_stored(config: ManagerConfig) -> None:
    """It may come with every request."""
    async with one_running(config, Clock()) as (manager, one):
        manager.patch("one", idle_timeout_s=300.0)
        before = (await stored(manager)).version
        event_id = manager.events.last_event_id
        for _ in range(100):
            manager.patch("one", idle_timeout_s=300.0, pinned=False)
        assert (await stored(manager)).version == before
        assert manager.events.last_event_id == event_id
        manager.patch("one", pinned=True)
        assert (await stored(manager)).pinned and one.pinned


@pytest.mark.parametrize(
    ("stored_at", "precision_s", "expected"),
    [
        (1000.0, 60.0, -2540.0),  # an hour ago, or up to a minute later
        (4560.0, 60.0, 1000.0),  # it may have been in use until now
        (4600.0, 60.0, 1000.0),
        (9999.0, 0.0, 1000.0),  # in the future: the clock was set back
        (1000.0, 0.0, -2600.0),
        (float("inf"), 60.0, 1000.0),
        (float("nan"), 60.0, 1000.0),
    ],
)
def test_idleness_continues_from_the_stored_time(
    stored_at: float, precision_s: float, expected: float
) -> None:
    found = last_used_at(stored_at, precision_s=precision_s, wall_now=4600.0, now=1000.0)
    assert found == pytest.approx(expected)


def idle_s(record: InstanceRecord) -> float:
    """Of an instance that is restored now."""
    now = time.monotonic()
    return now - instance_of(record, ManagerConfig(), EventLog(), lambda: now).resident().last_used


@pytest.mark.parametrize("state", STATES_WITH_PROCESS)
async def test_an_instance_with_a_process_continues_to_idle(state: InstanceState) -> None:
    an_hour_ago = replace(RECORD, state=state, last_active=time.time() - HOUR_S)
    new = replace(an_hour_ago, extra={"last_active_precision_s": LAST_USE_PRECISION_S})
    assert idle_s(new) == pytest.approx(HOUR_S - LAST_USE_PRECISION_S, abs=30)
    assert idle_s(an_hour_ago) == 0.0, "an earlier version stored it with changes of the state only"
    assert idle_s(replace(new, extra={"last_active_precision_s": "damaged"})) == 0.0
    assert idle_s(replace(new, last_active=time.time() + HOUR_S)) == 0.0, "the clock was set back"
