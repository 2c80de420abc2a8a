"""Draining, killing, expiry, shutdown: no process is left, and no port is released too early."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil
import pytest

from instance_manager.errors import InstanceNotRunning, ShuttingDown
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.process.supervised import can_supervise
from instance_manager.types import InstanceState
from tests.instance_manager.conftest import LOOPS, ManagerFactory, fake, marked, running, until_state


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def group(instance: Instance) -> list[psutil.Process]:
    assert instance.pid is not None
    leader = psutil.Process(instance.pid)
    return [leader, *leader.children(recursive=True)]


async def test_a_group_that_ignores_sigterm_is_killed_and_holds_its_port_until_then(
    managing: ManagerFactory,
) -> None:
    async with managing(stop_grace_s=0.5, max_instances=1) as manager:
        instance = await running(manager, fake("--ignore-term", "--grandchild"))
        processes = group(instance)
        assert len(processes) == 2
        port = instance.port
        ports_while_stopping = []
        manager.events.add_listener(lambda event: ports_while_stopping.append(instance.port))
        await manager.stop(instance.instance_id)
        assert not any(process.is_running() and process.status() != "zombie" for process in processes)
        assert ports_while_stopping == [port, None]  # held while stopping, free once stopped


async def test_a_grandchild_that_outlives_its_parent_is_ended_too(
    managing: ManagerFactory, mark: str
) -> None:
    async with managing(stop_grace_s=0.5) as manager:
        instance = await running(manager, fake("--grandchild"))  # the leader itself obeys SIGTERM
        await manager.stop(instance.instance_id)
        assert marked(mark) == []


async def test_stopping_waits_for_the_lease(manager: InstanceManager) -> None:
    instance = await running(manager, fake())
    lease = manager.try_lease(instance.instance_id)
    assert lease is not None
    stopping = asyncio.create_task(manager.stop(instance.instance_id))
    await until_state(instance, InstanceState.STOPPING)
    with pytest.raises(InstanceNotRunning):
        manager.try_lease(instance.instance_id)
    await asyncio.sleep(0.2)
    assert instance.pid is not None
    assert psutil.Process(instance.pid).is_running()
    assert not stopping.done()
    lease.release()
    await stopping
    assert instance.state is InstanceState.STOPPED


async def test_a_later_forced_stop_cuts_the_drain_short(manager: InstanceManager) -> None:
    instance = await running(manager, fake())
    lease = manager.try_lease(instance.instance_id)
    assert lease is not None
    draining = asyncio.create_task(manager.stop(instance.instance_id))
    await until_state(instance, InstanceState.STOPPING)
    began = time.monotonic()
    await manager.stop(instance.instance_id, force=True)
    assert time.monotonic() - began < 5
    await draining
    lease.release()
    assert instance.gate.in_flight == 0


async def test_draining_ends_after_its_timeout_or_with_the_engine(managing: ManagerFactory) -> None:
    async with managing(drain_timeout_s=0.3) as manager:
        instance = await running(manager, fake())
        lease = manager.try_lease(instance.instance_id)
        await manager.stop(instance.instance_id)
        assert instance.state is InstanceState.STOPPED
    async with managing() as manager:
        instance = await running(manager, fake("--die-after", "0.5"))
        lease = manager.try_lease(instance.instance_id)
        began = time.monotonic()
        await manager.stop(instance.instance_id)
        assert time.monotonic() - began < 10  # not the whole drain time of 20 s
        assert lease is not None


async def test_cancelling_the_caller_does_not_cancel_the_stop(manager: InstanceManager) -> None:
    instance = await running(manager, fake())
    for action in (manager.stop, manager.delete):
        call = asyncio.create_task(action(instance.instance_id))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait((call,))
        assert call.cancelled()
    await until_state(instance, InstanceState.STOPPED)
    while manager.list(include_terminal=True):
        await instance.wait_for_change()


async def test_an_idle_instance_expires_with_an_event_and_a_reason(manager: InstanceManager) -> None:
    instance = await running(manager, fake(timeout_s=0.5))
    took = await until_state(instance, InstanceState.STOPPED)
    assert 0.3 < took < 5
    event_types = [event.type for event in manager.events.since(0)]
    assert event_types.count("instance.expired") == 1
    assert instance.status_reason.startswith("idle for 0.5")
    with pytest.raises(InstanceNotRunning, match="idle for"):
        manager.try_lease(instance.instance_id)


async def test_an_instance_with_a_long_request_is_not_idle(manager: InstanceManager) -> None:
    instance = await running(manager, fake(timeout_s=0.4))
    async with manager.lease(instance.instance_id):
        await asyncio.sleep(1.0)
        assert instance.state is InstanceState.RUNNING
        released = time.monotonic()
    await until_state(instance, InstanceState.STOPPING)
    assert 0.4 <= time.monotonic() - released < 5


async def test_pinned_instances_and_those_without_a_timeout_do_not_expire(manager: InstanceManager) -> None:
    pinned, endless, short = await asyncio.gather(
        running(manager, fake(name="pinned", timeout_s=60.0)),
        running(manager, fake(name="endless", timeout_s=0.0)),
        running(manager, fake(name="short", timeout_s=60.0)),
    )
    manager.patch("pinned", idle_timeout_s=0.2, pinned=True)
    manager.patch("short", idle_timeout_s=0.2)  # a patch takes effect at once
    await until_state(short, InstanceState.STOPPED)
    await asyncio.sleep(0.3)
    assert pinned.state is endless.state is InstanceState.RUNNING
    manager.patch("pinned", pinned=False)
    await until_state(pinned, InstanceState.STOPPED)
    assert endless.state is InstanceState.RUNNING


async def test_expiry_continues_after_an_error(
    manager: InstanceManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from instance_manager.lifecycle import expiry
    from instance_manager.memory.victims import expired

    calls = 0

    def broken_once(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("once")
        return expired(*args)

    monkeypatch.setattr(expiry, "expired", broken_once)
    instance = await running(manager, fake(timeout_s=0.2))
    await until_state(instance, InstanceState.STOPPED)
    assert "expiry failed" in caplog.text


async def test_shutdown_ends_everything_in_parallel(managing: ManagerFactory, mark: str) -> None:
    async with managing(stop_grace_s=1.0, drain_timeout_s=0.5) as manager:
        stubborn = [fake("--ignore-term", "--grandchild") for _ in range(3)]
        first, *_ = await asyncio.gather(*(running(manager, spec) for spec in stubborn))
        manager.create(fake("--slow-start", "60", "--ignore-term"))
        waiting = asyncio.create_task(manager.wait_for_lease(manager.list()[-1].instance_id))
        lease = manager.try_lease(first.instance_id)
        await asyncio.sleep(0)
        assert len(marked(mark)) >= 6
        began = time.monotonic()
        events = manager.events.subscribe()
        log = manager.follow_log(first.instance_id, 0)
        ending = manager.begin_shutdown()
        with pytest.raises(ShuttingDown):
            manager.try_lease(first.instance_id)
        with pytest.raises(ShuttingDown):
            await waiting
        assert [line async for line in log] == []  # followers are disconnected
        assert all([event.data["reason"] == "Berth is shutting down" async for event in events])
        assert not ending.done()
        await ending
    assert time.monotonic() - began < 8  # one grace, not four
    assert marked(mark) == []
    assert lease is not None
    lease.release()


async def test_a_second_shutdown_can_shorten_the_drain_time(managing: ManagerFactory) -> None:
    async with managing(drain_timeout_s=60.0) as manager:
        instance = await running(manager, fake())
        lease = manager.try_lease(instance.instance_id)
        first = asyncio.create_task(manager.shutdown())
        await until_state(instance, InstanceState.STOPPING)
        await manager.shutdown(drain_timeout_s=0.0)
        await first
        assert instance.state is InstanceState.STOPPED
        assert lease is not None


async def test_cancelling_the_owner_still_ends_every_group(managing: ManagerFactory, mark: str) -> None:
    started = asyncio.Event()

    async def own() -> None:
        async with managing(stop_grace_s=0.5) as manager:
            await running(manager, fake("--ignore-term", "--grandchild"))
            started.set()
            await asyncio.sleep(3600)

    owner = asyncio.create_task(own())
    await started.wait()
    assert len(marked(mark)) == 2 + can_supervise()  # the engine, its child and the shim
    owner.cancel()
    await asyncio.sleep(0.1)
    owner.cancel()  # again, during the clean-up
    await asyncio.wait((owner,))
    assert owner.cancelled()
    assert marked(mark) == []
