"""Evictions with real processes (the fake engine): slots that are given up, victims that come into use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instance_manager.fleet import load_monitor
from instance_manager.fleet.expected_memory import ExpectedMemory
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.memory_planner import MemoryPlanner, Placement
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.fleet.scaling import ScalePolicy
from instance_manager.lifecycle.gate import Lease
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.memory.eviction import Evict
from instance_manager.memory.measurements import Footprint
from instance_manager.memory.victims import EvictionAction, EvictionStep
from instance_manager.types import Event, InstanceSpec, InstanceState
from tests.instance_manager.conftest import ManagerFactory, free_ports, until_state
from tests.instance_manager.test_fleet import MIB, bring_up, fleet_of, profile

pytestmark = pytest.mark.timeout(120)


def replica(fleet: Fleet, name: str) -> Instance:
    (instance,) = fleet.find(name).live
    return instance


def acquire(instance: Instance) -> Lease:
    lease = instance.gate.try_acquire()
    assert lease is not None
    return lease


def before_eviction(
    manager: InstanceManager, monkeypatch: pytest.MonkeyPatch, act: Callable[[EvictionStep], None]
) -> None:
    """Let `act` happen between a plan and its execution, each time."""
    evict = manager.evict

    async def acted(step: EvictionStep, **options: str) -> bool:
        act(step)
        return await evict(step, **options)

    monkeypatch.setattr(manager, "evict", acted)


@pytest.fixture
def two_slots() -> dict[str, int]:
    return {"base_port": free_ports(2), "max_instances": 2}


async def test_a_victim_that_gets_a_request_before_its_eviction_serves_on_and_another_goes(
    managing: ManagerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_slots: dict[str, int]
) -> None:
    models = [profile(name, devices=()) for name in ("old", "newer", "wanted")]
    async with managing(**two_slots) as manager, fleet_of(manager, tmp_path, *models) as fleet:
        await bring_up(fleet, "old")
        await bring_up(fleet, "newer")
        old, newer = replica(fleet, "old"), replica(fleet, "newer")
        leases: list[Lease] = []

        def use_it_once(step: EvictionStep) -> None:
            if not leases:
                assert (step.instance_id, step.must_drain) == (old.instance_id, False)
                leases.append(acquire(old))

        before_eviction(manager, monkeypatch, use_it_once)
        published: list[Event] = []
        manager.events.add_listener(published.append)
        await bring_up(fleet, "wanted")
        evicted = [(one.instance_id, one.data) for one in published if one.type == "instance.evicted"]
        assert evicted == [(newer.instance_id, {"action": "stop", "for": "wanted"})]
        assert (old.state, newer.state) == (InstanceState.RUNNING, InstanceState.STOPPED)
        assert old.gate.is_open, "it was never closed to other requests"
        assert newer.status_reason == "made room for wanted"
        leases[0].release()


async def test_a_victim_that_comes_into_use_after_each_plan_is_drained_after_the_longest_wait(
    managing: ManagerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_slots: dict[str, int]
) -> None:
    models = [profile(name, devices=()) for name in ("toggles", "pinned", "wanted")]
    async with (
        managing(**two_slots) as manager,
        fleet_of(manager, tmp_path, *models, max_wait_s=0.5) as fleet,
    ):
        await bring_up(fleet, "toggles", "pinned")
        replica(fleet, "pinned").pinned = True
        toggles = replica(fleet, "toggles")
        steps: list[EvictionStep] = []

        def use_it_for_a_moment(step: EvictionStep) -> None:
            steps.append(step)
            asyncio.get_running_loop().call_later(0.01, acquire(toggles).release)

        before_eviction(manager, monkeypatch, use_it_for_a_moment)
        await bring_up(fleet, "wanted")
        assert [step.must_drain for step in steps] == [False] * (len(steps) - 1) + [True]
        assert len(steps) > 1


async def test_a_model_whose_victims_keep_coming_into_use_lets_other_models_start(
    managing: ManagerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = MemoryPlanner.plan

    async def evicts_for_wanted(planner: MemoryPlanner, model: Model, *args: Any) -> Placement:
        placement = await plan(planner, model, *args)
        step = EvictionStep("victim", EvictionAction.STOP, must_drain=False)
        return replace(placement, plan=Evict((step,))) if model.name == "wanted" else placement

    async def abandoned(*_: object, **__: object) -> bool:
        return False

    monkeypatch.setattr(MemoryPlanner, "plan", evicts_for_wanted)
    monkeypatch.setattr(MemoryPlanner, "execute", abandoned)
    models = [profile(name, devices=()) for name in ("wanted", "other")]
    async with managing() as manager, fleet_of(manager, tmp_path, *models) as fleet:
        waiting = asyncio.create_task(fleet.wait_for_lease(fleet.find("wanted")))
        await asyncio.sleep(0)
        await bring_up(fleet, "other")
        waiting.cancel()


async def test_a_busy_victim_chosen_after_the_longest_wait_is_drained(
    managing: ManagerFactory, tmp_path: Path, two_slots: dict[str, int]
) -> None:
    models = [profile(name, devices=()) for name in ("busy", "pinned", "wanted")]
    async with (
        managing(**two_slots) as manager,
        fleet_of(manager, tmp_path, *models, max_wait_s=0.5) as fleet,
    ):
        await bring_up(fleet, "busy", "pinned")
        replica(fleet, "pinned").pinned = True
        busy = replica(fleet, "busy")
        lease = acquire(busy)
        wanted = asyncio.create_task(fleet.wait_for_lease(fleet.find("wanted")))
        await until_state(busy, InstanceState.STOPPING)
        assert not busy.gate.is_open and busy.pid is not None, "its request may end"
        assert not wanted.done()
        lease.release()
        (await wanted).release()
        assert busy.state is InstanceState.STOPPED


async def test_a_victim_that_drains_long_keeps_only_models_waiting_that_do_not_fit_beside_it(
    managing: ManagerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that is made for `wanted` isn't given to `big`, but `small` needs none of it."""
    sizes = {"busy": 400, "wanted": 700, "small": 100, "big": 500}

    def expected(_: ExpectedMemory, spec: InstanceSpec, level: int = 0) -> Footprint:
        return Footprint(sizes[spec.model_name] * MIB)

    monkeypatch.setattr(ExpectedMemory, "of_spec", expected)
    models = [profile(name, devices=()) for name in sizes]
    async with (
        managing() as manager,
        fleet_of(manager, tmp_path, *models, host_bytes=1000 * MIB, max_wait_s=0.5) as fleet,
    ):
        await bring_up(fleet, "busy")
        busy = replica(fleet, "busy")
        lease = acquire(busy)
        wanted = asyncio.create_task(fleet.wait_for_lease(fleet.find("wanted")))
        await until_state(busy, InstanceState.STOPPING)
        big = asyncio.create_task(fleet.wait_for_lease(fleet.find("big")))
        await asyncio.sleep(0)
        await bring_up(fleet, "small")
        assert (busy.state, wanted.done()) == (InstanceState.STOPPING, False)
        assert not fleet.find("big").replicas
        await fleet.manager.stop(replica(fleet, "small").instance_id)
        lease.release()
        for waiting in (wanted, big):
            (await waiting).release()
        assert busy.state is InstanceState.STOPPED


async def test_a_replica_that_drains_long_does_not_keep_other_models_from_scaling(
    managing: ManagerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_monitor, "_SAMPLE_INTERVAL_S", 0.1)
    scale = ScalePolicy(per_replica=2, window_samples=3, up_samples=1)
    models = [_scaled(name) for name in ("a", "b")]
    async with managing() as manager, fleet_of(manager, tmp_path, *models, scale=scale) as fleet:
        a, b = fleet.find("a"), fleet.find("b")
        await bring_up(fleet, "a", "b")
        first = replica(fleet, "a")
        leases = [acquire(first) for _ in range(3)]
        await _until(lambda: len(a.awake) == 2)
        (second,) = (one for one in a.awake if one is not first)
        leases.append(acquire(second))
        leases.pop(0).release()
        leases.pop(0).release()
        await until_state(second, InstanceState.STOPPING)  # both have one request; it was used before `first`
        leases += [acquire(replica(fleet, "b")) for _ in range(3)]
        await _until(lambda: len(b.awake) == 2)
        assert second.gate.in_flight == 1
        for lease in leases:
            lease.release()


async def test_a_pinned_replica_stays_and_another_is_scaled_down(
    managing: ManagerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_monitor, "_SAMPLE_INTERVAL_S", 0.1)
    scale = ScalePolicy(per_replica=2, window_samples=3, up_samples=1)
    async with managing() as manager, fleet_of(manager, tmp_path, _scaled("a"), scale=scale) as fleet:
        model = fleet.find("a")
        await bring_up(fleet, "a")
        first = replica(fleet, "a")
        leases = [acquire(first) for _ in range(3)]
        await _until(lambda: len(model.awake) == 2)
        (second,) = (one for one in model.awake if one is not first)
        second.pinned = True  # it is idle, and would go first
        for lease in leases[1:]:
            lease.release()
        await until_state(first, InstanceState.STOPPING)
        leases[0].release()
        await until_state(first, InstanceState.STOPPED)
        assert second.state is InstanceState.RUNNING


def _scaled(name: str) -> ModelProfile:
    return replace(profile(name, devices=()), max_replicas=2)


async def _until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_true():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)
