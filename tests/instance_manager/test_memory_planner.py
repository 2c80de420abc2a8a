"""Memory for models: what is measured, planned and executed.

The manager is a fake that lists instances and records the calls it gets, and the test says what instances
hold; the last test has a real engine.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from instance_manager.backends import plan_launch
from instance_manager.config import ManagerConfig
from instance_manager.errors import WrongState
from instance_manager.events import EventLog
from instance_manager.fleet import memory_planner, memory_snapshot
from instance_manager.fleet.expected_memory import kind_of
from instance_manager.fleet.memory_planner import MemoryPlanner, MemoryPlannerConfig, Placement
from instance_manager.fleet.models import Model
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.instance_record import new_instance
from instance_manager.memory.devices import HOST, Device
from instance_manager.memory.eviction import Evict, EvictionPolicy, Fits, NeverFits, Wait
from instance_manager.memory.gpu import Gpu, GpuDriver
from instance_manager.memory.measurements import Measurements
from instance_manager.memory.victims import EvictionAction, EvictionStep
from instance_manager.types import Endpoint, InstanceSpec, InstanceState
from tests.instance_manager.conftest import ManagerFactory, fake, running

GB = 10**9
DEMO = Path(__file__).resolve().parents[2] / "models" / "berth-demo"
NOW = 1000.0
SPEC = InstanceSpec("m", "command", command=("x",))


class FakeManager:
    """What MemoryPlanner needs of a manager; `acts` records its calls."""

    def __init__(self, config: ManagerConfig) -> None:
        self.config = config
        self.events = EventLog()
        self.has_free_slot = True
        self.why_no_free_slot = "all are in use"
        self.instances: list[Instance] = []
        self.acts: list[tuple[Any, ...]] = []
        self.refuses = ""  # the id of the instance that won't be put to sleep

    def list(self) -> list[Instance]:
        return self.instances

    async def evict(self, step: EvictionStep, *, reason: str, for_model: str) -> bool:
        if step.instance_id == self.refuses:
            raise WrongState("it has gone")
        victim = next(one for one in self.instances if one.instance_id == step.instance_id)
        if step.still_applies(victim.resident()):
            self.acts.append((step.instance_id, step.action, reason, for_model))
            return True
        return False


class World:
    """Instances, and what they hold."""

    def __init__(self, directory: Path) -> None:
        self.manager = FakeManager(ManagerConfig(log_dir=directory))
        self.held: dict[str, dict[Device, int]] = {}  # by instance id
        self.gpus: tuple[Gpu, ...] = ()
        self.measurements = Measurements(directory / "state")
        self.while_measuring: Callable[[], None] = lambda: None
        self.now = NOW

    def planner(self, host_gb: float = 10.0, **policy: float) -> MemoryPlanner:
        driver: Any = FakeDriver(self)
        manager: Any = self.manager
        config = MemoryPlannerConfig(host_bytes=int(host_gb * GB), policy=EvictionPolicy(**policy))
        return MemoryPlanner(manager, config, self.measurements, driver, clock=lambda: self.now)

    def add(self, name: str, holds_gb: float, *, used: float = 100.0, **fields: Any) -> Instance:
        """A running instance of a model of its own, last used at `used`."""
        spec = InstanceSpec(name, **{"engine": "command", "command": ("x",), **fields})
        number = len(self.manager.instances)
        one = new_instance(
            name,
            spec,
            plan_launch(spec, self.manager.config),
            config=self.manager.config,
            events=self.manager.events,
            clock=lambda: used,
            port=9000 + number,
            log_path=Path("none.log"),
        )
        one.pid, one.generation = 100 + number, 1
        one.set_state(InstanceState.HEALTH_CHECKING, "test")
        one.set_state(InstanceState.RUNNING, "test")
        one.gate.open(Endpoint("127.0.0.1", 9000 + number, "key", 1))
        self.manager.instances.append(one)
        self.held[name] = {HOST: int(holds_gb * GB)}
        return one

    def model(self, name: str) -> Model:
        return Model(name, None, 5, lambda: self.now)

    def measure(self, pids: Iterable[int], _: object) -> dict[int, dict[Device, int]]:
        self.while_measuring()
        by_pid = {one.pid: self.held[one.instance_id] for one in self.manager.instances}
        return {pid: by_pid[pid] for pid in pids}


class FakeDriver:
    def __init__(self, world: World) -> None:
        self._world = world

    def list_gpus(self) -> tuple[Gpu, ...]:
        return self._world.gpus

    def free_bytes(self, uuid: str) -> int | None:
        return next((gpu.free_bytes for gpu in self._world.gpus if gpu.uuid == uuid), None)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(memory_snapshot, "measure_groups", world.measure)
    return world


def gpu(index: int, free_gb: float = 80.0) -> Gpu:
    return Gpu(f"GPU-{index}", index, "Fake", 80 * GB, int(free_gb * GB))


async def plan(
    world: World, planner: MemoryPlanner, spec: InstanceSpec = SPEC, since: float = NOW
) -> Placement:
    model = Model(spec.model_name, None, 5, lambda: world.now)
    return await planner.plan(model, spec, None, since)


async def learn(
    world: World, planner: MemoryPlanner, name: str, holds_gb: float, **fields: Any
) -> InstanceSpec:
    """Let a model run, be measured and end; returns its spec."""
    one = world.add(name, holds_gb, **fields)
    await planner.plan_reclaim()
    world.manager.instances.remove(one)
    return one.spec


# What is measured


async def test_an_instances_memory_is_reported_and_recorded_as_its_models_peak(world: World) -> None:
    planner, one = world.planner(), world.add("a", 3)
    world.held["a"]["GPU-0"] = GB
    assert await planner.plan_reclaim() == ()
    assert one.memory_bytes == 4 * GB
    world.held["a"] = {HOST: 2 * GB}
    await planner.plan_reclaim()
    assert one.memory_bytes == 2 * GB
    world.manager.instances.remove(one)
    again = Measurements(world.manager.config.log_dir / "state")  # it has been saved
    peak = again.peak(kind_of(one.spec))
    assert peak is not None and peak.host_bytes == 3 * GB


async def test_a_starting_instance_reports_its_memory_but_records_no_peak(world: World) -> None:
    one = world.add("a", 3)
    one.state = InstanceState.HEALTH_CHECKING
    await world.planner().plan_reclaim()
    assert one.memory_bytes == 3 * GB
    assert world.measurements.peak(kind_of(one.spec)) is None


@pytest.mark.parametrize(
    "change",
    [{"level": 1, "state": InstanceState.SLEEPING}, {"generation": 2}, {"state": InstanceState.STOPPING}],
)
async def test_an_instance_that_changes_during_a_measurement_is_not_recorded(
    world: World, change: dict[str, Any]
) -> None:
    """Otherwise its awake memory would count as its memory asleep, and sleeping would seem useless."""
    one = world.add("a", 8)

    def fall_asleep() -> None:
        for name, value in change.items():
            setattr(one, name, value)

    world.while_measuring = fall_asleep
    await world.planner().plan_reclaim()
    assert one.memory_bytes is None
    kind = kind_of(one.spec)
    assert [world.measurements.peak(kind, level) for level in (0, 1)] == [None, None]


async def test_peaks_that_cannot_be_saved_are_logged_and_harm_nothing(
    world: World, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file in place of the folder")
    one = world.add("a", 3)
    assert await world.planner().plan_reclaim() == ()
    assert one.memory_bytes == 3 * GB
    assert "can't be saved" in caplog.text


# What is planned


async def test_a_model_that_was_never_measured_may_start(world: World) -> None:
    world.add("a", 9.9)
    placement = await plan(world, world.planner())
    assert (placement.plan, placement.devices, placement.fills) == (Fits(), None, frozenset({HOST}))


async def test_the_least_recently_used_instance_is_evicted_for_a_measured_need(world: World) -> None:
    planner = world.planner(min_residency_s=0)
    spec = await learn(world, planner, "new", 4)
    world.add("old", 4, used=10)
    world.add("newer", 4, used=20)
    placement = await plan(world, planner, spec)
    assert placement.plan == Evict((EvictionStep("old", EvictionAction.STOP, must_drain=False),))


async def test_pinned_instances_stay_and_busy_ones_are_evicted_after_the_longest_wait(world: World) -> None:
    planner = world.planner(min_residency_s=0, max_wait_s=60)
    spec = await learn(world, planner, "new", 4)
    world.add("pinned", 4, used=10, pinned=True)
    busy = world.add("busy", 4, used=20)
    busy.gate.try_acquire()
    placement = await plan(world, planner, spec)
    assert isinstance(placement.plan, Wait) and placement.plan.until == NOW + 60
    placement = await plan(world, planner, spec, since=NOW - 60)
    assert placement.plan == Evict((EvictionStep("busy", EvictionAction.STOP, must_drain=True),))
    busy.pinned = True
    placement = await plan(world, planner, spec, since=NOW - 60)
    assert isinstance(placement.plan, NeverFits)
    assert "pinned" in placement.plan.message


async def test_a_refusal_names_what_would_help(world: World) -> None:
    spec = InstanceSpec(str(DEMO), "engine", params={"kv_cache_memory_bytes": "6G"}, devices=())
    placement = await plan(world, world.planner(host_gb=1), spec)
    assert isinstance(placement.plan, NeverFits)
    assert "GiB of host memory, whose budget is 0.93 GiB. What helps: " in placement.plan.message
    assert "a smaller KV cache (kv_cache_memory_bytes)" in placement.plan.message
    assert "raise HOST_MEMORY (it allows 0.93 GiB of" in placement.plan.message
    placement = await plan(world, world.planner(host_gb=0.1), spec)
    assert isinstance(placement.plan, NeverFits)
    assert "kv_cache_memory_bytes" not in placement.plan.message, "even without a cache it is too large"


@pytest.mark.parametrize("state", [InstanceState.RUNNING, InstanceState.SLEEPING, InstanceState.WAKING])
async def test_an_instance_whose_files_are_gone_does_not_block_other_starts(
    world: World, state: InstanceState, tmp_path: Path
) -> None:
    """They were deleted, or a link in the hub's cache is broken, before it was measured."""
    planner = world.planner(min_residency_s=0)
    spec = await learn(world, planner, "new", 4)
    for name in ("deleted", "pruned"):
        (folder := tmp_path / name).mkdir()
        (folder / "config.json").write_text("{}")
        one = world.add(str(folder), 4, engine="engine", command=None)
        one.state, one.level = state, int(state is InstanceState.SLEEPING)
    (folder / "model.gguf").symlink_to("../../blobs/none")
    shutil.rmtree(tmp_path / "deleted")
    for _ in range(2):
        assert not isinstance((await plan(world, planner, spec)).plan, NeverFits)
        await planner.plan_reclaim()
    sleeping = world.manager.instances[0]
    assert (await planner.plan(world.model("deleted"), None, sleeping, NOW)).plan == Fits()


async def test_a_starting_instance_counts_at_its_expected_need_and_is_not_evicted(world: World) -> None:
    planner = world.planner(min_residency_s=0)
    spec = await learn(world, planner, "new", 4)
    await learn(world, planner, "starts", 8)
    starts = world.add("starts", 0.1)
    starts.state = InstanceState.STARTING
    placement = await plan(world, planner, spec)
    assert isinstance(placement.plan, Wait) and placement.plan.until is None
    world.held["starts"] = {HOST: 12 * GB}
    assert await planner.plan_reclaim() == ()
    starts.state = InstanceState.RUNNING
    (step,) = await planner.plan_reclaim()
    assert step.instance_id == "starts"


async def test_a_running_instance_counts_at_its_models_peak(world: World) -> None:
    """Its cache fills as it is used: just after the start it holds little, and will hold more."""
    planner = world.planner(min_residency_s=0)
    spec = await learn(world, planner, "new", 4)
    await learn(world, planner, "grows", 7)
    world.add("grows", 1)
    assert (await plan(world, planner, spec)).plan == Evict(
        (EvictionStep("grows", EvictionAction.STOP, must_drain=False),)
    )


@pytest.mark.parametrize(
    ("params", "fits"),
    [({"kv_cache_memory_bytes": "1G"}, True), ({"kv_cache_memory_bytes": "1.25G"}, False), ({}, True)],
)
async def test_an_engine_that_grows_counts_at_the_cache_size_it_was_given(
    world: World, params: dict[str, Any], fits: bool
) -> None:
    """It was measured just after its start. A cache of default size counts only as far as it is used."""
    planner = world.planner(host_gb=2, min_residency_s=0)
    spec = await learn(world, planner, "new", 0.6)
    world.add(str(DEMO), 0.3, engine="engine", command=None, params=params)
    sleep = Evict((EvictionStep(str(DEMO), EvictionAction.SLEEP1, must_drain=False),))
    for _ in range(2):  # the second time its estimate is known already
        assert (await plan(world, planner, spec)).plan == (Fits() if fits else sleep)


async def test_a_waking_instance_is_not_evicted(world: World) -> None:
    planner = world.planner(min_residency_s=0)
    spec = await learn(world, planner, "new", 4)
    wakes = world.add("wakes", 8)
    wakes.level, wakes.state = 1, InstanceState.WAKING
    placement = await plan(world, planner, spec)
    assert isinstance(placement.plan, Wait) and placement.plan.until is None
    wakes.state = InstanceState.SLEEPING
    assert isinstance((await plan(world, planner, spec)).plan, Evict)


async def test_a_stopping_instance_is_waited_for(world: World) -> None:
    planner = world.planner(min_residency_s=0)
    spec = await learn(world, planner, "new", 4)
    world.add("other", 1, used=5)
    world.add("leaves", 8).state = InstanceState.STOPPING
    placement = await plan(world, planner, spec)
    assert isinstance(placement.plan, Wait)
    assert "leaves" in placement.plan.reason


async def test_a_sleeping_instance_needs_the_memory_that_it_released(world: World) -> None:
    planner = world.planner(min_residency_s=0)
    sleeping = world.add("sleeping", 8)
    await planner.plan_reclaim()
    world.held["sleeping"] = {HOST: 3 * GB}
    sleeping.level, sleeping.state = 2, InstanceState.SLEEPING
    world.add("other", 2)
    model = Model("sleeping", None, 5, lambda: NOW)
    assert (await planner.plan(model, None, sleeping, NOW)).plan == Fits()
    world.held["other"] = {HOST: 3 * GB}
    placement = await planner.plan(model, None, sleeping, NOW)
    assert placement.plan == Evict((EvictionStep("other", EvictionAction.STOP, must_drain=False),))


async def test_gpus_are_chosen_where_the_spec_names_none(world: World) -> None:
    world.gpus = (gpu(0, free_gb=10), gpu(1, free_gb=70))
    planner = world.planner()
    placement = await plan(world, planner)
    assert (placement.devices, placement.fills) == (("GPU-1",), frozenset({"GPU-1"}))
    named = InstanceSpec("m", "command", command=("x",), devices=("0",))
    placement = await plan(world, planner, named)
    assert (placement.devices, placement.fills) == (("GPU-0",), frozenset({"GPU-0"}))
    without = InstanceSpec("m", "command", command=("x",), devices=())
    placement = await plan(world, planner, without)
    assert (placement.devices, placement.fills) == ((), frozenset({HOST}))


# What is executed


async def test_an_idle_instance_is_evicted_when_engines_exceed_the_budget(world: World) -> None:
    planner = world.planner(host_gb=10, min_residency_s=0)
    world.add("a", 6, used=10)
    busy = world.add("b", 6, used=5)
    lease = busy.gate.try_acquire()
    assert lease is not None
    assert await planner.plan_reclaim() == (EvictionStep("a", EvictionAction.STOP, must_drain=False),)
    world.held["a"] = {HOST: 4 * GB}
    assert await planner.plan_reclaim() == ()


async def test_it_measures_often_while_little_main_memory_is_left(world: World) -> None:
    planner = world.planner(host_gb=10)
    world.gpus = (gpu(0, free_gb=1),)
    world.add("a", 7)
    world.held["a"]["GPU-0"] = 75 * GB  # an engine never takes more of a GPU than it was given
    await planner.plan_reclaim()
    assert not planner.is_tight
    world.held["a"][HOST] = 9 * GB
    await planner.plan_reclaim()
    assert planner.is_tight


async def test_a_busy_instance_is_drained_when_the_budget_stays_exceeded(world: World) -> None:
    planner = world.planner(host_gb=10, min_residency_s=0, max_wait_s=60)
    leases = [world.add(name, 6, used=used).gate.try_acquire() for name, used in (("a", 10), ("b", 5))]
    assert all(leases)
    assert await planner.plan_reclaim() == ()
    world.now += 30
    world.held["b"] = {HOST: 3 * GB}
    assert await planner.plan_reclaim() == ()  # within the budget: the wait starts anew
    world.held["b"] = {HOST: 6 * GB}
    for _ in range(2):
        world.now += 30
        assert await planner.plan_reclaim() == ()
    world.now += 30
    assert await planner.plan_reclaim() == (EvictionStep("b", EvictionAction.STOP, must_drain=True),)


async def test_steps_are_executed_in_order(world: World) -> None:
    for name in ("a", "b", "c"):
        world.add(name, 1)
    world.manager.refuses = "b"
    steps = [
        EvictionStep("a", EvictionAction.SLEEP2, must_drain=False),
        EvictionStep("b", EvictionAction.SLEEP1, must_drain=False),  # refuses: the next step follows
        EvictionStep("c", EvictionAction.STOP, must_drain=True),
    ]
    assert await world.planner().execute(steps, for_model="new")
    assert world.manager.acts == [
        ("a", EvictionAction.SLEEP2, "made room for new", "new"),
        ("c", EvictionAction.STOP, "made room for new", "new"),
    ]


async def test_a_victim_that_came_into_use_stays_and_ends_the_plan(world: World) -> None:
    """The steps after it were chosen together with it, so a new plan is due."""
    for name in ("a", "b", "c"):
        world.add(name, 1)
    assert world.manager.instances[1].gate.try_acquire() is not None
    steps = [EvictionStep(name, EvictionAction.STOP, must_drain=False) for name in ("a", "b", "c")]
    assert not await world.planner().execute(steps, for_model="new")
    assert [act[0] for act in world.manager.acts] == ["a"]
    steps[1] = EvictionStep("b", EvictionAction.STOP, must_drain=True)
    assert await world.planner().execute(steps, for_model="new")


async def test_a_stop_waits_until_the_driver_has_freed_the_gpus_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.gpus = (gpu(0, free_gb=10), gpu(1))
    world.add("a", 1)
    world.held["a"]["GPU-0"] = 50 * GB
    waited: list[tuple[Any, ...]] = []

    async def wait_until_freed(*args: Any) -> bool:
        waited.append(args[:2])
        return True

    monkeypatch.setattr(memory_planner, "wait_until_freed", wait_until_freed)
    await world.planner().execute([EvictionStep("a", EvictionAction.STOP, must_drain=False)], for_model="b")
    assert waited == [("GPU-0", 55 * GB)]  # most of it: other processes may take some


async def test_the_least_recently_used_idle_instance_gives_up_its_slot(world: World) -> None:
    planner = world.planner(min_residency_s=10, max_wait_s=60)
    world.manager.has_free_slot = False
    assert isinstance((await plan(world, planner)).plan, NeverFits)  # there is no victim
    world.add("pinned", 1, used=1, pinned=True)
    world.add("busy", 1, used=2).gate.try_acquire()
    world.add("young", 1, used=NOW - 5)
    world.add("idle", 1, used=50)
    world.add("longer", 1, used=40)
    step = EvictionStep("longer", EvictionAction.STOP, must_drain=False)
    assert (await plan(world, planner)).plan == Evict((step,))
    world.manager.has_free_slot = True
    assert isinstance((await plan(world, planner)).plan, Fits)


async def test_a_busy_instance_gives_up_its_slot_after_the_longest_wait_and_drains(world: World) -> None:
    planner = world.planner(min_residency_s=0, max_wait_s=60)
    world.manager.has_free_slot = False
    world.add("busy", 1).gate.try_acquire()
    waits = (await plan(world, planner)).plan
    assert waits == Wait(NOW + 60, "m waits for an instance slot: busy in use")
    step = EvictionStep("busy", EvictionAction.STOP, must_drain=True)
    assert (await plan(world, planner, since=NOW - 60)).plan == Evict((step,))


async def test_a_starting_or_stopping_instance_is_waited_for_to_get_its_slot(world: World) -> None:
    planner = world.planner(min_residency_s=0)
    world.manager.has_free_slot = False
    one = world.add("starts", 1)
    one.state = InstanceState.STARTING
    assert isinstance((await plan(world, planner, since=0)).plan, Wait)
    one.state = InstanceState.STOPPING
    assert isinstance((await plan(world, planner)).plan, Wait)


async def test_a_sleeping_instance_gives_up_its_slot_however_short_it_was_awake(world: World) -> None:
    world.manager.has_free_slot = False
    sleeping = world.add("sleeping", 1, used=NOW - 1)
    planner = world.planner(min_residency_s=10)
    sleeping.awake_since = NOW - 1
    assert isinstance((await plan(world, planner)).plan, Wait)
    sleeping.level, sleeping.state = 1, InstanceState.SLEEPING
    step = EvictionStep("sleeping", EvictionAction.STOP, must_drain=False)
    assert (await plan(world, planner)).plan == Evict((step,))
    assert isinstance((await planner.plan(world.model("sleeping"), None, sleeping, NOW)).plan, Fits), (
        "it has one"
    )


async def test_a_refusal_says_why_no_slot_can_be_freed(world: World) -> None:
    world.manager.has_free_slot = False
    world.add("pinned", 1, pinned=True)
    never = (await plan(world, world.planner())).plan
    assert never == NeverFits(
        "m needs one more instance slot, of which there are 1; pinned (pinned) keeps one: all are in use"
    )


async def test_the_refusal_of_a_too_large_model_does_not_mention_slots(world: World) -> None:
    world.manager.has_free_slot = False
    world.add("other", 0.1)
    spec = InstanceSpec(str(DEMO), "engine", params={"kv_cache_memory_bytes": "6G"}, devices=())
    never = (await plan(world, world.planner(host_gb=1), spec)).plan
    assert isinstance(never, NeverFits)
    assert "all are in use" not in never.message and "slot" not in never.message
    assert "What helps: " in never.message


# With a real engine


async def test_a_real_engine_is_measured_with_its_whole_process_group_until_it_ends(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    async with managing(stop_grace_s=0.3) as manager, asyncio.timeout(60):
        planner = MemoryPlanner(
            manager, MemoryPlannerConfig(), Measurements(tmp_path / "state"), GpuDriver({})
        )
        instance = await running(manager, fake("--grandchild"))
        assert instance.record()["memory_bytes"] is None
        await planner.plan_reclaim()
        assert instance.memory_bytes is not None and 2_000_000 < instance.memory_bytes < 500_000_000
        await manager.stop(instance.instance_id, force=True)
        assert instance.memory_bytes is None
