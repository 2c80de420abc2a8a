"""The broadcast ring, and the event log that uses it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from instance_manager.broadcast.ring import BroadcastRing
from instance_manager.events import EventLog
from instance_manager.types import Event


async def collect(ring: BroadcastRing[int], after: int) -> list[int]:
    return [item async for item in ring.follow(after)]


def test_the_ring_keeps_the_newest() -> None:
    ring: BroadcastRing[int] = BroadcastRing(3)
    ring.extend(range(1, 6))
    assert ring.tail(10) == [3, 4, 5]
    assert ring.tail(2) == [4, 5]
    assert ring.tail(0) == []
    assert ring.since(4) == [5]
    assert ring.since(5) == []
    assert ring.since(0) == [3, 4, 5]
    assert (ring.last_number, ring.capacity) == (5, 3)


async def test_followers_see_old_and_new_until_the_ring_is_closed() -> None:
    ring: BroadcastRing[int] = BroadcastRing(10)
    ring.extend([1, 2])
    readers = [asyncio.create_task(collect(ring, after)) for after in (0, 1, 2)]
    await asyncio.sleep(0)
    ring.extend([3])
    ring.extend([])
    await asyncio.sleep(0)
    ring.extend([4])
    ring.close()
    assert await asyncio.gather(*readers) == [[1, 2, 3, 4], [2, 3, 4], [3, 4]]
    assert await collect(ring, 3) == [4]
    ring.reopen()
    late = asyncio.create_task(collect(ring, 4))
    await asyncio.sleep(0)
    assert not late.done()
    ring.close()
    assert await late == []


async def test_a_slow_reader_loses_items_and_delays_no_other() -> None:
    ring: BroadcastRing[int] = BroadcastRing(3)
    ring.extend([1])
    reader = ring.follow(0)
    assert await anext(reader) == 1
    ring.extend(range(2, 100))
    assert await anext(reader) == 97
    ring.close()
    assert [item async for item in reader] == [98, 99]


async def test_items_that_arrive_while_a_reader_works_are_not_missed() -> None:
    ring: BroadcastRing[int] = BroadcastRing(10)
    ring.extend([1])
    reader = ring.follow(0)
    assert await anext(reader) == 1
    ring.extend([2])
    ring.close()
    assert [item async for item in reader] == [2]


def test_events_are_numbered_and_published_in_order() -> None:
    log = EventLog()
    received: list[Event] = []
    remove = log.add_listener(received.append)
    first = log.publish("instance.state", "i", {"status": "starting"})
    second = log.publish("instance.deleted", "i")
    assert [event.event_id for event in received] == [1, 2]
    assert received == [first, second]
    assert (second.type, second.instance_id, dict(second.data)) == ("instance.deleted", "i", {})
    remove()
    remove()
    log.publish("instance.state", "i")
    assert len(received) == 2
    assert log.last_event_id == 3


def test_a_listener_that_fails_stops_neither_the_others_nor_the_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = EventLog()
    received: list[Event] = []

    def broken(_: Event) -> None:
        raise RuntimeError("no")

    log.add_listener(broken)
    log.add_listener(received.append)
    with caplog.at_level(logging.ERROR, "berth.manager"):
        log.publish("instance.state", "i")
    assert len(received) == 1
    assert "a listener failed on event 1" in caplog.text


async def test_a_reader_resumes_after_the_last_event_it_saw() -> None:
    log = EventLog(capacity=3)
    for number in range(5):
        log.publish("instance.state", str(number))
    assert [event.event_id for event in log.since(4)] == [5]
    assert [event.event_id for event in log.since(1)] == [3, 4, 5]
    resumed, fresh = log.subscribe(after=4), log.subscribe()
    log.publish("instance.state", "new")
    log.close()
    assert [event.event_id async for event in resumed] == [5, 6]
    assert [event.event_id async for event in fresh] == [6]


async def test_a_reader_of_a_previous_process_resumes_where_it_was() -> None:
    previous = EventLog()
    published = [previous.publish("instance.state", "i") for _ in range(5)]
    log = EventLog()
    log.seed(published[:3], 1000)  # the other two were never stored
    assert [event.event_id for event in log.since(2)] == [3]
    new = log.publish("instance.state", "i")
    assert new.event_id == 1001 == log.last_event_id
    resumed = [log.subscribe(after=seen) for seen in (0, 2, 3, 5, 1000, 1001, 1002)]
    log.close()
    ids = [[event.event_id async for event in reader] for reader in resumed]
    assert ids == [[1, 2, 3, 1001], [3, 1001], [1001], [1001], [1001], [], [1, 2, 3, 1001]]


async def test_an_unknown_id_from_a_previous_process_returns_all_events() -> None:
    log = EventLog()
    log.publish("instance.state", "i")
    log.close()
    assert len(log.since(999)) == 1
    assert [event.event_id async for event in log.subscribe(after=999)] == [1]
