"""Leases of a manager's instances: waiting for a start, a restart or another lease."""

from __future__ import annotations

import asyncio

import pytest

from instance_manager.errors import InstanceNotFound, InstanceNotRunning, QueueFull, StartTooSlow
from instance_manager.lifecycle.gate import Lease
from instance_manager.manager import InstanceManager
from instance_manager.types import InstanceState
from tests.instance_manager.conftest import ManagerFactory, fake, running, until_state


async def queued(manager: InstanceManager, instance_id: str, count: int) -> list[asyncio.Task[Lease]]:
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(manager.wait_for_lease(instance_id)))
        await asyncio.sleep(0)
    return tasks


async def test_requests_for_a_starting_instance_are_served_in_order(
    managing: ManagerFactory,
) -> None:
    async with managing(max_in_flight=1) as manager:
        instance = manager.create(fake("--slow-start", "0.3"))
        assert manager.try_lease(instance.instance_id) is None
        served: list[int] = []

        async def request(number: int) -> None:
            async with manager.lease(instance.instance_id):
                assert instance.gate.in_flight == 1
                served.append(number)

        async with asyncio.TaskGroup() as requests:
            for number in range(5):
                requests.create_task(request(number))
        assert served == [0, 1, 2, 3, 4]
        assert instance.gate.in_flight == 0


async def test_the_queue_is_bounded_and_a_cancelled_request_leaves_it(managing: ManagerFactory) -> None:
    async with managing(max_queue=2) as manager:
        instance = manager.create(fake("--slow-start", "0.3"))
        leaving, staying = await queued(manager, instance.instance_id, 2)
        with pytest.raises(QueueFull):
            await manager.wait_for_lease(instance.instance_id)
        leaving.cancel()
        await asyncio.wait((leaving,))
        (third,) = await queued(manager, instance.instance_id, 1)
        (await staying).release()
        (await third).release()
        assert instance.gate.in_flight == 0


async def test_requests_wait_through_a_restart(manager: InstanceManager) -> None:
    instance = await running(manager, fake("--slow-start", "0.2"))
    old = manager.try_lease(instance.instance_id)
    assert old is not None
    restarting = asyncio.create_task(manager.restart(instance.instance_id))
    await asyncio.sleep(0)
    assert manager.try_lease(instance.instance_id) is None
    (waiting,) = await queued(manager, instance.instance_id, 1)
    await asyncio.sleep(0.2)
    assert instance.state is InstanceState.STOPPING  # the old request finishes first
    old.release()
    await restarting
    new = await waiting
    assert new.endpoint.generation == old.endpoint.generation + 1
    new.release()


async def test_a_stop_rejects_waiting_requests(manager: InstanceManager) -> None:
    instance = manager.create(fake("--slow-start", "60"))
    (waiting,) = await queued(manager, instance.instance_id, 1)
    await manager.stop(instance.instance_id, reason="no more")
    with pytest.raises(InstanceNotRunning, match="no more"):
        await waiting


async def test_a_wait_that_times_out_leaves_the_queue(managing: ManagerFactory) -> None:
    async with managing(start_timeout_cap_s=0.3, start_timeout_s=30.0, max_in_flight=1) as manager:
        instance = await running(manager, fake())
        lease = manager.try_lease(instance.instance_id)
        assert lease is not None
        with pytest.raises(StartTooSlow) as refusal:
            await manager.wait_for_lease(instance.instance_id)
        assert refusal.value.retry_after_s
        assert instance.gate.queued == 0
        lease.release()


async def test_a_lease_is_released_after_an_error(manager: InstanceManager) -> None:
    instance = await running(manager, fake())
    with pytest.raises(LookupError):
        async with manager.lease(instance.instance_id):
            raise LookupError
    assert instance.gate.in_flight == 0


async def test_there_is_no_lease_for_an_unknown_instance(manager: InstanceManager) -> None:
    with pytest.raises(InstanceNotFound):
        manager.try_lease("unknown")
    with pytest.raises(InstanceNotFound):
        await manager.wait_for_lease("unknown")


async def test_a_lease_from_before_a_crash_still_counts_until_released(manager: InstanceManager) -> None:
    instance = await running(manager, fake("--die-after", "0.3"))
    old = manager.try_lease(instance.instance_id)
    assert old is not None
    await until_state(instance, InstanceState.FAILED)
    manager.start(instance.instance_id)
    await until_state(instance, InstanceState.RUNNING)
    assert instance.gate.in_flight == 1
    old.release()
    assert instance.gate.in_flight == 0
