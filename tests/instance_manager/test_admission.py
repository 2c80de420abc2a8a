"""The gate: who gets a lease, who waits, in which order."""

from __future__ import annotations

import asyncio

import pytest

from instance_manager.errors import InstanceNotRunning, QueueFull
from instance_manager.lifecycle.gate import Gate, Lease
from instance_manager.types import Endpoint

ENDPOINT = Endpoint("127.0.0.1", 9000, "key", 1)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def gate(*, max_in_flight: int = 0, max_queue: int = 10, clock: Clock | None = None) -> Gate:
    return Gate("i", "m", max_in_flight=max_in_flight, max_queue=max_queue, clock=clock or Clock())


async def waiting(some: Gate, count: int = 1) -> list[asyncio.Task[Lease]]:
    """Requests that have queued, in this order."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(some.acquire()))
        await asyncio.sleep(0)
    return tasks


def test_a_closed_gate_grants_nothing() -> None:
    some = gate()
    assert some.try_acquire() is None
    some.open(ENDPOINT)
    assert some.try_acquire() is not None
    some.close()
    assert some.try_acquire() is None
    assert some.in_flight == 1


def test_releasing_twice_counts_once() -> None:
    some = gate()
    some.open(ENDPOINT)
    lease, other = some.try_acquire(), some.try_acquire()
    assert lease is not None
    assert other is not None
    assert repr(lease) == "<Lease i generation 1 held>"
    lease.release()
    lease.release()
    assert some.in_flight == 1
    assert repr(lease) == "<Lease i generation 1 released>"
    assert (lease.endpoint, lease.instance_id, lease.model_name) == (ENDPOINT, "i", "m")


def test_activity_is_opening_taking_and_releasing() -> None:
    clock = Clock()
    some = gate(clock=clock)
    clock.now = 110.0
    some.open(ENDPOINT)
    assert some.last_active == 110.0
    clock.now = 120.0
    lease = some.try_acquire()
    assert lease is not None
    assert some.last_active == 120.0
    clock.now = 130.0
    lease.release()
    assert some.last_active == 130.0
    clock.now = 140.0
    lease.release()
    assert some.last_active == 130.0


async def test_waiters_are_served_in_order_when_the_gate_opens() -> None:
    some = gate(max_in_flight=2)
    first, second, third = await waiting(some, 3)
    assert some.queued == 3
    some.open(ENDPOINT)
    assert some.in_flight == 2
    (await first).release()
    assert some.in_flight == 2  # the third took the place at once
    await second
    await third


async def test_nobody_overtakes_a_waiter() -> None:
    some = gate(max_in_flight=1)
    some.open(ENDPOINT)
    lease = some.try_acquire()
    (waiter,) = await waiting(some)
    assert lease is not None
    lease.release()
    assert some.try_acquire() is None
    assert (await waiter).endpoint is ENDPOINT


async def test_the_queue_is_bounded() -> None:
    some = gate(max_queue=2)
    tasks = await waiting(some, 2)
    with pytest.raises(QueueFull, match="2 requests wait") as refusal:
        await some.acquire()
    assert refusal.value.retry_after_s == 1.0
    some.open(ENDPOINT)
    assert len([await task for task in tasks]) == 2


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    some = gate(max_queue=2)
    leaver, stayer = await waiting(some, 2)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert some.queued == 1
    some.open(ENDPOINT)
    await stayer
    assert some.in_flight == 1


async def test_a_grant_that_meets_its_cancellation_is_given_back() -> None:
    some = gate()
    (waiter,) = await waiting(some)
    some.open(ENDPOINT)
    waiter.cancel()  # granted, but the task has not run yet
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert some.in_flight == 0


async def test_a_refusal_that_meets_its_cancellation_is_only_a_cancellation() -> None:
    some = gate()
    (waiter,) = await waiting(some)
    some.reject(lambda: InstanceNotRunning("gone"))
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_whoever_was_cancelled_in_the_queue_is_passed_over() -> None:
    some = gate()
    leaver, stayer = await waiting(some, 2)
    leaver.cancel()  # its task has not run yet, so it still stands in the queue
    some.open(ENDPOINT)
    assert some.in_flight == 1 or some.queued == 0
    await stayer
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert some.in_flight == 1

    rejected = gate()
    leaver, stayer = await waiting(rejected, 2)
    leaver.cancel()
    rejected.reject(lambda: InstanceNotRunning("gone"))
    with pytest.raises(InstanceNotRunning):
        await stayer
    with pytest.raises(asyncio.CancelledError):
        await leaver


async def test_everyone_who_waits_is_told_why_in_vain() -> None:
    some = gate()
    tasks = await waiting(some, 2)
    some.reject(lambda: InstanceNotRunning("gone"))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["gone", "gone"]
    assert errors[0] is not errors[1]
    assert some.queued == 0


async def test_drained_is_done_with_the_last_lease() -> None:
    some = gate()
    some.open(ENDPOINT)
    assert some.drained().done()
    lease, other = some.try_acquire(), some.try_acquire()
    assert lease is not None
    assert other is not None
    drained = some.drained()
    assert some.drained() is drained
    lease.release()
    assert not drained.done()
    other.release()
    assert drained.done()
    assert some.drained() is not drained


async def test_an_open_gate_with_room_grants_without_waiting() -> None:
    some = gate()
    some.open(ENDPOINT)
    assert some.is_open
    assert (await some.acquire()).endpoint is ENDPOINT
