"""The gate: which request gets a lease, which waits, and in which order."""

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


def make_gate(*, max_in_flight: int = 0, max_queue: int = 10, clock: Clock | None = None) -> Gate:
    return Gate("i", "m", max_in_flight=max_in_flight, max_queue=max_queue, clock=clock or Clock())


async def waiting(gate: Gate, count: int = 1) -> list[asyncio.Task[Lease]]:
    """Queued requests, in order of arrival."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(gate.acquire()))
        await asyncio.sleep(0)
    return tasks


def test_a_closed_gate_grants_nothing() -> None:
    gate = make_gate()
    assert gate.try_acquire() is None
    gate.open(ENDPOINT)
    assert gate.try_acquire() is not None
    gate.close()
    assert gate.try_acquire() is None
    assert gate.in_flight == 1


def test_releasing_twice_counts_once() -> None:
    gate = make_gate()
    gate.open(ENDPOINT)
    lease, other = gate.try_acquire(), gate.try_acquire()
    assert lease is not None
    assert other is not None
    assert repr(lease) == "<Lease i generation 1 held>"
    lease.release()
    lease.release()
    assert gate.in_flight == 1
    assert repr(lease) == "<Lease i generation 1 released>"
    assert (lease.endpoint, lease.instance_id, lease.model_name) == (ENDPOINT, "i", "m")


def test_opening_acquiring_and_releasing_count_as_activity() -> None:
    clock = Clock()
    gate = make_gate(clock=clock)
    clock.now = 110.0
    gate.open(ENDPOINT)
    assert gate.last_active == 110.0
    clock.now = 120.0
    lease = gate.try_acquire()
    assert lease is not None
    assert gate.last_active == 120.0
    clock.now = 130.0
    lease.release()
    assert gate.last_active == 130.0
    clock.now = 140.0
    lease.release()
    assert gate.last_active == 130.0


async def test_waiters_are_served_in_order_when_the_gate_opens() -> None:
    gate = make_gate(max_in_flight=2)
    first, second, third = await waiting(gate, 3)
    assert gate.queued == 3
    gate.open(ENDPOINT)
    assert gate.in_flight == 2
    (await first).release()
    assert gate.in_flight == 2  # the third got the lease at once
    await second
    await third


async def test_a_new_request_does_not_overtake_a_waiter() -> None:
    gate = make_gate(max_in_flight=1)
    gate.open(ENDPOINT)
    lease = gate.try_acquire()
    (waiter,) = await waiting(gate)
    assert lease is not None
    lease.release()
    assert gate.try_acquire() is None
    assert (await waiter).endpoint is ENDPOINT


async def test_the_queue_is_bounded() -> None:
    gate = make_gate(max_queue=2)
    tasks = await waiting(gate, 2)
    with pytest.raises(QueueFull, match="2 requests already wait") as refusal:
        await gate.acquire()
    assert refusal.value.retry_after_s == 1.0
    gate.open(ENDPOINT)
    assert len([await task for task in tasks]) == 2


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    gate = make_gate(max_queue=2)
    leaving, staying = await waiting(gate, 2)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert gate.queued == 1
    gate.open(ENDPOINT)
    await staying
    assert gate.in_flight == 1


async def test_a_lease_granted_to_a_cancelled_waiter_is_released() -> None:
    gate = make_gate()
    (waiter,) = await waiting(gate)
    gate.open(ENDPOINT)
    waiter.cancel()  # granted, but the task has not run yet
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert gate.in_flight == 0


async def test_a_rejected_waiter_that_is_cancelled_raises_only_the_cancellation() -> None:
    gate = make_gate()
    (waiter,) = await waiting(gate)
    gate.reject(lambda: InstanceNotRunning("gone"))
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_cancelled_waiters_are_skipped() -> None:
    gate = make_gate()
    leaving, staying = await waiting(gate, 2)
    leaving.cancel()  # its task has not run yet, so it is still in the queue
    gate.open(ENDPOINT)
    assert gate.in_flight == 1 or gate.queued == 0
    await staying
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert gate.in_flight == 1

    rejected = make_gate()
    leaving, staying = await waiting(rejected, 2)
    leaving.cancel()
    rejected.reject(lambda: InstanceNotRunning("gone"))
    with pytest.raises(InstanceNotRunning):
        await staying
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_each_rejected_waiter_gets_its_own_error() -> None:
    gate = make_gate()
    tasks = await waiting(gate, 2)
    gate.reject(lambda: InstanceNotRunning("gone"))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["gone", "gone"]
    assert errors[0] is not errors[1]
    assert gate.queued == 0


async def test_drained_is_done_with_the_last_lease() -> None:
    gate = make_gate()
    gate.open(ENDPOINT)
    assert gate.drained().done()
    lease, other = gate.try_acquire(), gate.try_acquire()
    assert lease is not None
    assert other is not None
    drained = gate.drained()
    assert gate.drained() is drained
    lease.release()
    assert not drained.done()
    other.release()
    assert drained.done()
    assert gate.drained() is not drained


async def test_an_open_gate_below_its_limit_grants_without_waiting() -> None:
    gate = make_gate()
    gate.open(ENDPOINT)
    assert gate.is_open
    assert (await gate.acquire()).endpoint is ENDPOINT
