"""The fleet with real processes (the fake engine) on fake GPUs: what starts when."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from instance_manager.errors import (
    InstanceFailedToStart,
    InvalidSpec,
    ManagerError,
    ModelNotFound,
    NoCapacity,
    NoSuchDevice,
)
from instance_manager.fleet.fleet import Fleet, FleetConfig
from instance_manager.fleet.memory_planner import MemoryPlanner, MemoryPlannerConfig, Placement
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.fleet.scaling import ScalePolicy
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.memory.eviction import EvictionPolicy
from instance_manager.memory.gpu import GpuDriver
from instance_manager.memory.measurements import Measurements
from instance_manager.process.logs import LogFile
from instance_manager.types import InstanceSpec, InstanceState
from tests.fake_engine import command
from tests.fake_nvml import describe_gpus, pynvml, write_gpus
from tests.instance_manager.conftest import ManagerFactory

MIB = 1 << 20
DEMO = Path(__file__).resolve().parents[2] / "models" / "berth-demo"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs of 80 GiB, all empty."""
    write_gpus(tmp_path / "gpus.json", describe_gpus())
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "gpus.json"))


@asynccontextmanager
async def fleet_of(
    manager: InstanceManager,
    directory: Path,
    *profiles: ModelProfile,
    host_bytes: int | None = None,
    max_wait_s: float = 60.0,
    scale: ScalePolicy | None = None,
) -> AsyncIterator[Fleet]:
    driver = GpuDriver({})
    policy = EvictionPolicy(min_residency_s=0.0, max_wait_s=max_wait_s)
    config = MemoryPlannerConfig(host_bytes=host_bytes, policy=policy)
    planner = MemoryPlanner(manager, config, Measurements(directory / "state"), driver)
    fleet = Fleet(manager, FleetConfig(scale=scale or ScalePolicy()), planner)
    fleet.set_profiles(profiles)
    async with fleet.run():
        yield fleet
    driver.close()


def profile(name: str, *flags: str, devices: tuple[str, ...] | None = None) -> ModelProfile:
    return ModelProfile(
        name=name, model=name, engine="command", command=tuple(command(*flags)), devices=devices
    )


async def bring_up(fleet: Fleet, *names: str) -> None:
    async with asyncio.timeout(60):
        leases = await asyncio.gather(*(fleet.wait_for_lease(fleet.find(name)) for name in names))
    for lease in leases:
        lease.release()


def spans(fleet: Fleet, *names: str) -> list[tuple[float, float]]:
    """When each was started and when it was running."""
    found = []
    for name in names:
        (instance,) = fleet.find(name).live
        assert instance.ready_at is not None
        found.append((instance.started_at, instance.ready_at))
    return found


async def test_models_on_different_gpus_start_side_by_side(managing: ManagerFactory, tmp_path: Path) -> None:
    slow = ("--slow-start", "1")
    models = [profile("a", *slow, devices=("0",)), profile("b", *slow, devices=("1",))]
    async with managing() as manager, fleet_of(manager, tmp_path, *models) as fleet:
        await bring_up(fleet, "a", "b")
        (began_a, ran_a), (began_b, ran_b) = spans(fleet, "a", "b")
        assert max(began_a, began_b) < min(ran_a, ran_b)


async def test_models_on_one_gpu_start_one_after_the_other(managing: ManagerFactory, tmp_path: Path) -> None:
    models = [profile(name, "--slow-start", "0.5", devices=("0",)) for name in ("a", "b")]
    async with managing() as manager, fleet_of(manager, tmp_path, *models) as fleet:
        await bring_up(fleet, "a", "b")
        first, second = sorted(spans(fleet, "a", "b"))
        assert first[1] <= second[0]


async def test_a_slow_start_does_not_keep_others_from_failing_or_running(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    models = [
        profile("slow", "--slow-start", "30", devices=("0",)),
        profile("quick", devices=("1",)),
    ]
    async with managing() as manager, fleet_of(manager, tmp_path, *models) as fleet:
        fleet.request_start(fleet.find("slow"))
        await bring_up(fleet, "quick")
        assert fleet.find("slow").status == "starting"


async def test_a_model_that_is_stopped_while_its_start_is_planned_does_not_start(
    managing: ManagerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with managing() as manager, fleet_of(manager, tmp_path, profile("a"), profile("b")) as fleet:
        plan, model = MemoryPlanner.plan, fleet.find("a")

        async def stopped_meanwhile(planner: MemoryPlanner, planned: Model, *args: Any) -> Placement:
            placement = await plan(planner, planned, *args)
            if planned is model:
                await fleet.stop(model)
            return placement

        monkeypatch.setattr(MemoryPlanner, "plan", stopped_meanwhile)
        fleet.request_start(model)
        await asyncio.sleep(0)
        await bring_up(fleet, "b")
        assert (model.status, dict(model.replicas)) == ("stopped", {})


async def test_no_replica_starts_while_its_model_is_being_stopped(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    two = replace(profile("a"), max_replicas=2)
    async with managing() as manager, fleet_of(manager, tmp_path, two, profile("b")) as fleet:
        await bring_up(fleet, "a")
        model = fleet.find("a")
        (first,) = model.live
        lease = first.gate.try_acquire()
        assert lease is not None
        stopping = asyncio.create_task(fleet.stop(model))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(fleet.wait_for_lease(model))
        await bring_up(fleet, "b")  # the scaler has seen the waiting request
        assert (len(model.replicas), stopping.done()) == (1, False)
        lease.release()
        await stopping
        (await waiting).release()


async def test_a_sleeping_instance_that_is_gone_when_it_should_wake_is_replaced(
    managing: ManagerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had been stopped just then: the requested model starts all the same."""
    async with managing() as manager, fleet_of(manager, tmp_path, profile("a")) as fleet:
        await bring_up(fleet, "a")
        (instance,) = fleet.find("a").live
        wake = manager.wake

        async def stopped_first(instance_id: str) -> Instance:
            await manager.stop(instance_id)
            return await wake(instance_id)

        monkeypatch.setattr(manager, "wake", stopped_first)
        monkeypatch.setattr(manager, "is_asleep", lambda instance_id: not instance.state.is_terminal)
        instance.gate.close()
        await bring_up(fleet, "a")
        assert fleet.find("a").error is None


async def test_a_request_that_waits_while_the_only_replica_is_deleted_is_served_by_another(
    managing: ManagerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process has ended but its log is still being removed: it exists, but can't be started again."""
    async with managing() as manager, fleet_of(manager, tmp_path, profile("a")) as fleet:
        await bring_up(fleet, "a")
        (instance,) = fleet.find("a").live
        remove, may_go = LogFile.remove, asyncio.Event()

        async def remove_late(log: LogFile) -> None:
            await may_go.wait()
            await remove(log)

        monkeypatch.setattr(LogFile, "remove", remove_late)
        deleting = asyncio.create_task(manager.delete(instance.instance_id))
        while not instance.state.is_terminal:
            await instance.wait_for_change()
        try:
            await bring_up(fleet, "a")
        finally:
            may_go.set()
            await deleting
        (other,) = fleet.find("a").live
        assert other.instance_id != instance.instance_id


async def test_a_request_waiting_for_a_model_that_leaves_the_catalog_is_rejected(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    """The dropped model isn't started again for it, and is forgotten a moment later."""
    async with managing() as manager, fleet_of(manager, tmp_path, profile("a")) as fleet:
        await bring_up(fleet, "a")
        model = fleet.find("a")
        (instance,) = model.live
        lease = instance.gate.try_acquire()
        assert lease is not None
        stopping = asyncio.create_task(manager.stop(instance.instance_id, patient=True))
        waiting = asyncio.create_task(fleet.wait_for_lease(model))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not instance.gate.is_open and model.queue
        fleet.set_profiles([])
        lease.release()
        await stopping
        with pytest.raises(ModelNotFound, match="no longer exists"):
            async with asyncio.timeout(20):
                await waiting
        while fleet.known("a") is not None:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)
        with pytest.raises(ModelNotFound):
            fleet.find("a")


async def test_a_request_for_an_instance_that_is_just_stopping_starts_it_again(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    """It was created by hand, and no catalog names it."""
    async with managing() as manager, fleet_of(manager, tmp_path) as fleet:
        spec = InstanceSpec(model_name="a", engine="command", command=command(), name="by-hand")
        instance = manager.create(spec)
        await manager.wait_ready("by-hand", 30)
        lease = instance.gate.try_acquire()
        assert lease is not None
        stopping = asyncio.create_task(manager.stop("by-hand", patient=True))
        waiting = asyncio.create_task(fleet.wait_for_lease(fleet.find("a")))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not instance.gate.is_open and fleet.find("a").queue
        lease.release()
        await stopping
        (await waiting).release()
        assert instance.state is InstanceState.RUNNING


async def test_a_replica_that_keeps_dying_is_replaced_after_growing_delays(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    async with managing() as manager, fleet_of(manager, tmp_path, profile("a")) as fleet:
        model = fleet.find("a")
        for deaths in range(3):
            await bring_up(fleet, "a")
            (instance,) = model.live
            assert instance.pid is not None
            os.kill(instance.pid, signal.SIGKILL)
            while not instance.state.is_terminal:
                await instance.wait_for_change()
            if deaths == 0:
                assert model.error is None  # the first is replaced at once
            else:
                with pytest.raises(InstanceFailedToStart, match=rf"died while it ran: .* in {2 * deaths} s"):
                    await fleet.wait_for_lease(model)
            model.backoff.retry_at = 0.0


def refused(name: str, tmp_path: Path) -> tuple[ModelProfile, type[ManagerError]]:
    """A model whose start is refused, and the error."""
    demo = partial(ModelProfile, name, model=str(DEMO), engine="engine")
    match name:
        case "large":
            return demo(params={"kv_cache_memory_bytes": "6G"}, devices=()), NoCapacity
        case "flag":
            return demo(params={"max_num_seq": 3}), InvalidSpec
        case "gone":
            return ModelProfile(name, model=str(tmp_path / "none"), engine="engine"), ModelNotFound
        case _:
            return profile(name, devices=("9",)), NoSuchDevice


@pytest.mark.parametrize("name", ["large", "flag", "gone", "device"])
async def test_a_start_is_refused_for_the_same_reason_until_the_next_try(
    managing: ManagerFactory, tmp_path: Path, name: str
) -> None:
    """The first request and those in the back-off get the same error; only NoCapacity has a Retry-After."""
    wrong, kind = refused(name, tmp_path)
    async with managing() as manager, fleet_of(manager, tmp_path, wrong, host_bytes=1000 * MIB) as fleet:
        model = fleet.find(name)
        for _ in range(2):
            with pytest.raises(kind) as found:
                await fleet.wait_for_lease(model)
            assert type(found.value) is kind
            assert (found.value.retry_after_s is not None) == (kind is NoCapacity)
        with pytest.raises(kind, match=r"the next start is tried in \d+ s at the earliest"):
            fleet.request_start(model)


async def test_a_model_that_has_been_corrected_is_tried_at_once(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    wrong, kind = refused("device", tmp_path)
    async with managing() as manager, fleet_of(manager, tmp_path, wrong) as fleet:
        with pytest.raises(kind):
            await fleet.wait_for_lease(fleet.find("device"))
        fleet.set_profiles([profile("device")])
        assert fleet.find("device").status == "stopped"
        await bring_up(fleet, "device")


async def test_an_idle_engine_is_evicted_at_once_when_another_outgrows_the_budget(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    """No request arrives: Berth notices the growth alone."""
    models = [profile(name, "--ballast-mb", "100", devices=()) for name in ("idle", "grows")]
    async with managing() as manager, fleet_of(manager, tmp_path, *models, host_bytes=500 * MIB) as fleet:
        await bring_up(fleet, "idle")
        await bring_up(fleet, "grows")
        (idle,), (grows,) = fleet.find("idle").live, fleet.find("grows").live
        async with asyncio.timeout(30), httpx.AsyncClient(trust_env=False) as http:
            response = await http.post(f"http://127.0.0.1:{grows.port}/grow", content="300")
            assert response.status_code == 200
            while idle.state is not InstanceState.STOPPED:
                await idle.wait_for_change()
        assert idle.status_reason == "made room for what runs"
        assert grows.state is InstanceState.RUNNING
