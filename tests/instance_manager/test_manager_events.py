"""What the manager tells its observer: the fleet, or none."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from instance_manager.fleet.fleet import Fleet, FleetConfig
from instance_manager.fleet.memory_planner import MemoryPlanner, MemoryPlannerConfig
from instance_manager.lifecycle.gate import Gate
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.memory.gpu import GpuDriver
from instance_manager.memory.measurements import Measurements
from instance_manager.types import InstanceState
from tests.berth_process import ROOT
from tests.instance_manager.conftest import fake, fake_vllm, running

pytestmark = pytest.mark.timeout(60)


class Recorder:
    """An observer that has one waiting request, and wakes nothing."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def capacity_freed(self, gate: Gate) -> None:
        self.notices.append(f"capacity at {gate.instance_id}")

    def is_sought(self, gate: Gate) -> bool:
        return True

    def may_wake(self, instance: Instance) -> bool:
        self.notices.append(f"wake {instance.instance_id}")
        return False

    def shutdown_begun(self) -> None:
        self.notices.append("shutdown")


@pytest.fixture
async def asleep(manager: InstanceManager) -> AsyncIterator[Instance]:
    """An instance whose engine was put to sleep by its own route."""
    instance = await running(manager, fake_vllm(enable_sleep_mode=True))
    manager.record_sleep(instance.instance_id, 1)
    assert instance.state is InstanceState.SLEEPING
    yield instance


async def test_an_observer_hears_of_free_capacity_and_of_the_shutdown(manager: InstanceManager) -> None:
    observer = Recorder()
    instance = await running(manager, fake())
    manager.observe(observer)  # also of instances that are older
    lease = manager.try_lease(instance.instance_id)
    assert lease is not None and lease.is_wanted
    assert observer.notices == []
    lease.release()
    lease.release()
    assert observer.notices == [f"capacity at {instance.instance_id}"]
    await manager.shutdown()
    assert observer.notices[1:] == ["shutdown"]


async def test_without_an_observer_no_request_waits_elsewhere(manager: InstanceManager) -> None:
    instance = await running(manager, fake())
    lease = manager.try_lease(instance.instance_id)
    assert lease is not None and not lease.is_wanted
    lease.release()


async def test_without_an_observer_a_request_wakes_the_instance(
    manager: InstanceManager, asleep: Instance
) -> None:
    assert manager.try_lease(asleep.instance_id) is None
    assert not manager._find(asleep.instance_id).sleep.is_asleep


async def test_an_observer_decides_when_an_instance_wakes(manager: InstanceManager, asleep: Instance) -> None:
    observer = Recorder()
    manager.observe(observer)
    assert manager.try_lease(asleep.instance_id) is None
    assert observer.notices == [f"wake {asleep.instance_id}"]
    assert manager._find(asleep.instance_id).sleep.is_asleep


async def test_a_fleet_adopts_instances_that_are_older_than_itself(
    manager: InstanceManager, tmp_path: Path
) -> None:
    instance = await running(manager, fake())
    planner = MemoryPlanner(manager, MemoryPlannerConfig(), Measurements(tmp_path), GpuDriver({}))
    fleet = Fleet(manager, FleetConfig(), planner)
    async with fleet.run():
        assert fleet.find("fake-model").replicas == {instance.instance_id: instance}
        lease = fleet.try_lease(fleet.find("fake-model"))
        assert lease is not None
        lease.release()


def test_no_callback_is_assigned_into_another_object() -> None:
    """Who is called is passed to a constructor or a method, so that it can be found there."""
    found = [
        f"{path.relative_to(ROOT)}:{target.lineno}"
        for package in ("api", "composition", "instance_manager")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and target.attr.startswith(("on_", "has_external"))
        if not (isinstance(target.value, ast.Name) and target.value.id == "self")
    ]
    assert found == []
