"""Requests that wait for a model: order, bounds, and no lost lease. The leases are a real gate's."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instance_manager.errors import ManagerError, NoCapacity, QueueFull, ShuttingDown
from instance_manager.fleet.model_queue import ModelQueue
from instance_manager.lifecycle.gate import Gate, Lease
from instance_manager.types import Endpoint


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def open_gate(capacity: int) -> Gate:
    gate = Gate("i", "m", max_in_flight=capacity, max_queue=0, clock=Clock())
    gate.open(Endpoint("127.0.0.1", 9000, "key", 1))
    return gate


async def come(queue: ModelQueue, *priorities: int) -> list[asyncio.Task[Lease]]:
    """Requests that wait in the queue, in this order."""
    tasks = []
    for priority in priorities:
        tasks.append(asyncio.create_task(queue.wait(priority)))
        await asyncio.sleep(0)
    return tasks


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def leave(*tasks: asyncio.Task[Lease]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_leases_go_to_the_most_urgent_then_to_the_first() -> None:
    queue, gate = ModelQueue("m", 10, Clock()), open_gate(1)
    tasks = await come(queue, 0, 5, -1, 0)
    served = []
    for _ in tasks:
        queue.grant(gate.try_acquire)
        await settle()
        (done,) = [number for number, task in enumerate(tasks) if task.done() and number not in served]
        served.append(done)
        tasks[done].result().release()
    assert served == [2, 0, 3, 1]
    assert len(queue) == 0


async def test_no_waiter_is_served_without_a_lease_and_no_lease_is_taken_without_a_waiter() -> None:
    queue, gate = ModelQueue("m", 10, Clock()), open_gate(2)
    queue.grant(gate.try_acquire)
    assert gate.in_flight == 0
    tasks = await come(queue, 0, 0, 0)
    queue.grant(gate.try_acquire)
    await settle()
    assert [task.done() for task in tasks] == [True, True, False]
    assert (gate.in_flight, len(queue)) == (2, 1)
    await leave(tasks[2])


async def test_it_is_bounded_and_a_cancelled_request_frees_its_place() -> None:
    queue = ModelQueue("m", 2, Clock())
    tasks = await come(queue, 0, 0)
    with pytest.raises(QueueFull, match="2 requests already wait for model 'm'") as refused:
        await queue.wait(0)
    assert refused.value.retry_after_s == 1.0
    with pytest.raises(QueueFull):
        queue.check_not_full()
    await leave(tasks[0])
    queue.check_not_full()
    assert len(queue) == 1
    await leave(tasks[1])
    assert not queue


async def test_since_and_priority_describe_the_requests_that_still_wait() -> None:
    clock = Clock()
    queue = ModelQueue("m", 10, clock)
    assert (queue.since, queue.priority) == (None, 0)
    (first,) = await come(queue, 3)
    clock.now = 110.0
    (second,) = await come(queue, -2)
    assert (queue.since, queue.priority) == (100.0, -2)
    await leave(first)
    assert (queue.since, queue.priority) == (110.0, -2)
    (third,) = await come(queue, 7)
    await leave(second)
    assert queue.priority == 7
    await leave(third)
    assert (queue.since, queue.priority) == (None, 0)


async def test_a_cancelled_request_gets_no_lease() -> None:
    queue, gate = ModelQueue("m", 10, Clock()), open_gate(5)
    gone, stays = await come(queue, 0, 0)
    await leave(gone)
    queue.grant(gate.try_acquire)
    await settle()
    assert (stays.done(), gate.in_flight) == (True, 1)


async def test_a_lease_granted_during_a_cancellation_is_released() -> None:
    queue, gate = ModelQueue("m", 10, Clock()), open_gate(1)
    (waiting,) = await come(queue, 0)
    queue.grant(gate.try_acquire)
    assert gate.in_flight == 1
    waiting.cancel()  # before it has run on
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (gate.in_flight, len(queue)) == (0, 0)


async def test_an_error_set_during_a_cancellation_is_dropped() -> None:
    queue = ModelQueue("m", 10, Clock())
    (waiting,) = await come(queue, 0)
    queue.reject(lambda: ShuttingDown("the end"))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(queue) == 0


async def test_each_rejected_request_gets_an_error_of_its_own() -> None:
    queue = ModelQueue("m", 10, Clock())
    tasks = await come(queue, 0, 1, 2)
    await leave(tasks[1])
    numbers = itertools.count()

    def make_error() -> ManagerError:
        return NoCapacity(f"error {next(numbers)}")

    queue.reject(make_error)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in found if isinstance(error, NoCapacity)] == ["error 0", "error 1"]
    assert (len(queue), queue.since) == (0, None)
    (later,) = await come(queue, 0)  # the queue is still usable
    assert len(queue) == 1
    await leave(later)


Act = tuple[str, int]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["come", "leave", "grant", "give_back"]), st.integers(-2, 2))))
def test_no_lease_is_lost_in_any_order_of_arrivals_and_cancellations(acts: list[Act]) -> None:
    async def story() -> None:
        queue, gate = ModelQueue("m", 5, Clock()), open_gate(2)
        tasks: list[asyncio.Task[Lease]] = []
        for act, number in acts:
            if act == "come":
                tasks.append(asyncio.create_task(queue.wait(number)))
            elif act == "leave" and tasks:
                tasks[number % len(tasks)].cancel()
            elif act == "grant":
                queue.grant(gate.try_acquire)
            elif served := [task for task in tasks if _is_served(task)]:
                served[number % len(served)].result().release()
            if number > 0:
                await asyncio.sleep(0)
        await leave(*tasks)
        for task in tasks:
            if _is_served(task):
                task.result().release()
        assert (gate.in_flight, len(queue), queue.since) == (0, 0, None)

    asyncio.run(story())


def _is_served(task: asyncio.Task[Lease]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
