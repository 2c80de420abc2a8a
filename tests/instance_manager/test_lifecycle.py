"""An instance from create to delete: gate, stop, start, restart; on both event loops."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

import httpx
import psutil
import pytest

from instance_manager.errors import (
    InstanceExists,
    InstanceNotFound,
    InvalidSpec,
    ModelNotFound,
    NoCapacity,
    ShuttingDown,
    WrongState,
)
from instance_manager.manager import InstanceManager
from instance_manager.types import (
    TRANSITIONS,
    FailureClass,
    InstanceSpec,
    InstanceState,
    InvalidTransition,
)
from tests.instance_manager.conftest import LOOPS, ManagerFactory, fake, fake_vllm, running, until_state

RECORD = {
    *("instance_id", "model_name", "served_model_name", "engine", "status", "status_reason", "host", "port"),
    *("pid", "pid_start_time", "params", "command", "timeout", "expires_at", "last_active", "in_flight"),
    *("devices", "memory_bytes", "created_at", "ready_at", "load_phase", "load_progress", "load_seconds"),
    *("restarts", "log_path", "error"),
    *("profile", "pinned", "sleep_level", "engine_reason", "container"),
}


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def statuses(manager: InstanceManager, instance_id: str) -> list[str]:
    """Every state the instance has been in."""
    events = manager.events.since(0)
    return [e.data["status"] for e in events if e.type == "instance.state" and e.instance_id == instance_id]


async def test_from_create_to_delete(manager: InstanceManager) -> None:
    instance = manager.create(fake(name="one", timeout_s=60.0, devices=["0"]))
    assert instance.state is InstanceState.STARTING
    assert instance.record()["status"] == "starting"
    await manager.wait_ready("one", 30)
    record = instance.record()
    assert set(record) == RECORD
    assert (record["status"], record["instance_id"], record["engine"]) == ("running", "one", "command")
    assert record["port"] == manager.config.base_port
    assert record["command"][0] == sys.executable
    assert str(record["port"]) in record["command"]
    assert record["expires_at"] == pytest.approx(time.time() + 60, abs=5)
    assert abs(record["pid_start_time"] - time.time()) < 60
    assert 0 < record["load_seconds"] < 30
    process = psutil.Process(record["pid"])
    assert os.getpgid(process.pid) == process.pid  # in its own group
    await manager.delete("one")
    assert not process.is_running()
    assert statuses(manager, "one") == ["starting", "health_checking", "running", "stopping", "stopped"]
    assert manager.events.since(0)[-1].type == "instance.deleted"
    assert not instance.log_path.exists()
    with pytest.raises(InstanceNotFound):
        manager.get("one")


async def test_stop_then_start_again(manager: InstanceManager) -> None:
    instance = await running(manager, fake())
    pid = instance.pid
    await manager.stop(instance.instance_id, reason="enough")
    assert (instance.state, instance.status_reason, instance.port, instance.pid) == (
        "stopped",
        "enough",
        None,
        None,
    )
    await manager.stop(instance.instance_id)  # a second stop does nothing
    assert manager.start(instance.instance_id) is instance
    assert instance.record()["status"] == "starting"
    await manager.wait_ready(instance.instance_id, 30)
    assert instance.state is InstanceState.RUNNING
    assert instance.pid != pid
    assert instance.record()["restarts"] == 1
    lease = manager.try_lease(instance.instance_id)
    assert lease is not None
    assert lease.endpoint.generation == 2
    lease.release()


async def test_restart_gives_another_process_on_the_same_port(manager: InstanceManager) -> None:
    instance = await running(manager, fake())
    port, pid = instance.port, instance.pid
    await manager.restart(instance.instance_id)
    await manager.wait_ready(instance.instance_id, 30)
    assert (instance.state, instance.port) == (InstanceState.RUNNING, port)
    assert instance.pid != pid
    seen = statuses(manager, instance.instance_id)
    assert seen[2:5] == ["running", "stopping", "stopped"]
    assert seen[5:] == ["starting", "health_checking", "running"]


async def test_restarting_before_the_first_run_has_begun(manager: InstanceManager) -> None:
    """The replaced run never begins; waiting for its end must still return."""
    instance = manager.create(fake())
    async with asyncio.timeout(30):
        await manager.restart(instance.instance_id)
        await manager.wait_ready(instance.instance_id, 30)
        await manager.stop(instance.instance_id)
        manager.start(instance.instance_id)
        await manager.restart(instance.instance_id)
    assert (await manager.wait_ready(instance.instance_id, 30)).state is InstanceState.RUNNING


async def test_a_crash_is_noticed_within_a_second_and_leaves_other_instances_alone(
    manager: InstanceManager,
) -> None:
    victim, other = await asyncio.gather(running(manager, fake("--grandchild")), running(manager, fake()))
    assert victim.pid is not None
    port, other_pid = victim.port, other.pid
    grandchild = psutil.Process(victim.pid).children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    assert await until_state(victim, InstanceState.FAILED) < 1.0
    assert victim.failure is not None
    assert (victim.failure.failure_class, victim.failure.signal) == (FailureClass.CRASHED, "SIGKILL")
    assert victim.failure.exit_code is None
    assert victim.port is None
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert (other.state, other.pid) == (InstanceState.RUNNING, other_pid)
    again = await running(manager, fake())  # the port was released and is used again
    assert again.port == port
    assert victim.record()["error"]["class"] == "crashed"


async def test_a_failed_instance_can_be_started_restarted_and_stopped(manager: InstanceManager) -> None:
    instance = await running(manager, fake("--die-after", "0.2", "--exit-code", "3"))
    await until_state(instance, InstanceState.FAILED)
    assert instance.failure is not None
    assert instance.failure.exit_code == 3
    manager.start(instance.instance_id)
    assert instance.record()["error"] is None
    await manager.wait_ready(instance.instance_id, 30)
    assert instance.state is InstanceState.RUNNING
    await until_state(instance, InstanceState.FAILED)
    await manager.restart(instance.instance_id)  # a failed instance is started
    await until_state(instance, InstanceState.RUNNING)
    await until_state(instance, InstanceState.FAILED)
    assert (await manager.stop(instance.instance_id)).state is InstanceState.STOPPED


async def test_running_requires_that_the_engine_names_the_model_and_accepts_the_key(
    manager: InstanceManager,
) -> None:
    instance = await running(manager, fake_vllm(check_key=True, served_model_name="public"))
    assert instance.served_model_name == "public"
    async with manager.lease(instance.instance_id) as lease, httpx.AsyncClient(trust_env=False) as client:
        url = f"http://{lease.endpoint.host}:{lease.endpoint.port}/v1/models"
        assert (await client.get(url)).status_code == 401
        key = {"Authorization": f"Bearer {lease.endpoint.api_key}"}
        assert (await client.get(url, headers=key)).status_code == 200
    assert lease.endpoint.api_key not in " ".join(instance.command)


async def test_the_engine_gets_its_environment(
    managing: ManagerFactory, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    monkeypatch.setenv("ADMIN_API_KEYS", "secret")
    async with managing(engine_env={"HF_HOME": "/cache", "BERTH_TEST_MARK": mark}) as manager:
        instance = await running(manager, fake(name="e", env={"MINE": "1"}, devices=["2", "3"]))
        async with manager.lease("e") as lease, httpx.AsyncClient(trust_env=False) as client:
            env = (await client.get(f"http://{instance.host}:{instance.port}/env")).json()
    assert (env["HF_HOME"], env["MINE"], env["CUDA_VISIBLE_DEVICES"]) == ("/cache", "1", "2,3")
    assert (env["VLLM_API_KEY"], env["BERTH_INSTANCE_ID"]) == (lease.endpoint.api_key, "e")
    assert "ADMIN_API_KEYS" not in env


async def test_invalid_specs_are_refused_at_once_and_hold_no_port(managing: ManagerFactory) -> None:
    async with managing(max_instances=1) as manager:
        for spec, error in (
            (InstanceSpec("m", "nope"), InvalidSpec),
            (InstanceSpec("/no/such/model", "engine"), ModelNotFound),
            (fake(timeout_s=-1.0), InvalidSpec),
        ):
            with pytest.raises(error):
                manager.create(spec)
        assert manager.list(include_terminal=True) == []
        await running(manager, fake(name="a"))
        with pytest.raises(InstanceExists, match="'a' already exists"):
            manager.create(fake(name="a"))
        with pytest.raises(NoCapacity, match="VLLM_MAX_INSTANCES"):
            manager.create(fake())
        await manager.stop("a")
        other = manager.create(fake(name="b"))
        with pytest.raises(NoCapacity):
            manager.start("a")
        assert other.port == manager.config.base_port
        with pytest.raises(InstanceExists):  # even while the first is only stopped
            manager.create(fake(name="a"))


async def test_listing_and_patching(manager: InstanceManager) -> None:
    up = await running(manager, fake(name="up"))
    down = await running(manager, fake_vllm(served_model_name="public"))
    await manager.stop(down.instance_id)
    assert manager.list() == [up]
    assert manager.list(include_terminal=True) == [up, down]
    assert manager.list(status="stopped") == [down]
    assert manager.list(model="public", include_terminal=True) == [down]
    assert manager.list(model="fake-model") == [up]
    manager.patch("up", idle_timeout_s=5.0, pinned=True)
    assert up.record()["timeout"] == 5.0
    assert up.record()["expires_at"] is None
    manager.patch("up", pinned=False)
    assert up.record()["expires_at"] is not None
    with pytest.raises(InvalidSpec):
        manager.patch("up", idle_timeout_s=-1.0)
    with pytest.raises(InstanceNotFound):
        manager.patch("nobody", pinned=True)


async def test_actions_in_the_wrong_state_are_refused(manager: InstanceManager) -> None:
    instance = await running(manager, fake(name="x"))
    with pytest.raises(WrongState, match="it is running"):
        manager.start("x")
    lease = manager.try_lease("x")
    assert lease is not None
    stopping = asyncio.create_task(manager.stop("x"))
    await until_state(instance, InstanceState.STOPPING)
    for action in (manager.start, manager.restart):
        with pytest.raises(WrongState, match="it is stopping"):
            result = action("x")
            if asyncio.iscoroutine(result):
                await result
    deleting = asyncio.create_task(manager.delete("x"))
    await asyncio.sleep(0)
    with pytest.raises(WrongState, match="being deleted"):
        manager.start("x")
    lease.release()
    await asyncio.gather(stopping, deleting)
    for call in (manager.get, manager.start, manager.try_lease, lambda i: manager.read_log(i, 1)):
        with pytest.raises(InstanceNotFound):
            call("x")


async def test_a_wait_for_readiness_that_times_out_changes_nothing(manager: InstanceManager) -> None:
    instance = manager.create(fake("--slow-start", "1"))
    assert (await manager.wait_ready(instance.instance_id, 0.05)).state.is_pending
    waiter = asyncio.create_task(manager.wait_ready(instance.instance_id, 30))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait((waiter,))
    await until_state(instance, InstanceState.RUNNING)


async def test_every_transition_is_checked(manager: InstanceManager) -> None:
    instance = await running(manager, fake())
    allowed = TRANSITIONS[instance.state]
    for state in set(InstanceState) - allowed:
        with pytest.raises(InvalidTransition, match=f"{state} can't follow running"):
            instance.set_state(state, "a test")
    assert instance.state is InstanceState.RUNNING
    assert set(TRANSITIONS) == set(InstanceState)


async def test_a_manager_that_has_shut_down_refuses_everything(managing: ManagerFactory) -> None:
    async with managing() as manager:
        instance = await running(manager, fake())
    assert instance.state is InstanceState.STOPPED
    assert instance.status_reason == "Berth is shutting down"
    with pytest.raises(ShuttingDown):
        manager.create(fake())
    with pytest.raises(ShuttingDown):
        manager.start(instance.instance_id)
    with pytest.raises(RuntimeError, match="outside"):
        InstanceManager(manager.config).create(fake())


async def test_an_error_inside_run_is_raised_unchanged(managing: ManagerFactory) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with managing() as manager:
            manager.create(fake())
            raise LookupError("mine")
