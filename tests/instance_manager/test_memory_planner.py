"""Room for models: what is measured, what is asked of the policy, and what is done then.

The manager is a fake that lists instances and notes what it is asked, and what instances hold is said by the
test; the last test has a real engine.
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
from instance_manager.fleet import memory_planner as room_module
from instance_manager.fleet.memory_planner import MemoryPlanner, MemoryPlannerConfig, Placed
from instance_manager.fleet.models import Model
from instance_manager.lifecycle.instance import Instance, new_instance
from instance_manager.memory.eviction import (
    HOST,
    Device,
    Evict,
    EvictionAction,
    EvictionPolicy,
    EvictionStep,
    Fits,
    NeverFits,
    Wait,
)
from instance_manager.memory.gpu import Gpu, GpuDriver
from instance_manager.memory.measurements import Measurements
from instance_manager.types import Endpoint, Event, InstanceSpec, InstanceState
from tests.instance_manager.conftest import ManagerFactory, fake, running

GB = 10**9
DEMO = Path(__file__).resolve().parents[2] / "models" / "berth-demo"
NOW = 1000.0
SPEC = InstanceSpec("m", "command", command=("x",))


class FakeManager:
    """What MemoryPlanner asks of a manager; `acts` are those that it was told to do."""

    def __init__(self, config: ManagerConfig) -> None:
        self.config = config
        self.events = EventLog()
        self.has_free_slot = True
        self.why_no_free_slot = "all are taken"
        self.instances: list[Instance] = []
        self.acts: list[tuple[Any, ...]] = []
        self.refuses = ""  # the id of the instance that won't be put to sleep

    def list(self) -> list[Instance]:
        return self.instances

    async def stop(self, instance_id: str, *, reason: str, patient: bool) -> None:
        self.acts.append(("stop", instance_id, reason, patient))
        self.instances = [one for one in self.instances if one.instance_id != instance_id]

    async def sleep(self, instance_id: str, level: int) -> None:
        if instance_id == self.refuses:
            raise WrongState("it has gone")
        self.acts.append(("sleep", instance_id, level))


class World:
    """Instances, and what they hold."""

    def __init__(self, directory: Path) -> None:
        self.manager = FakeManager(ManagerConfig(log_dir=directory))
        self.held: dict[str, dict[Device, int]] = {}  # by instance id
        self.gpus: tuple[Gpu, ...] = ()
        self.measurements = Measurements(directory / "state")
        self.while_measuring: Callable[[], None] = lambda: None
        self.now = NOW

    def keeper(self, host_gb: float = 10.0, **policy: float) -> MemoryPlanner:
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
        one.pid, one.spawns = 100 + number, 1
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
    monkeypatch.setattr(room_module, "measure_groups", world.measure)
    return world


def gpu(index: int, free_gb: float = 80.0) -> Gpu:
    return Gpu(f"GPU-{index}", index, "Fake", 80 * GB, int(free_gb * GB))


async def plan(world: World, keeper: MemoryPlanner, spec: InstanceSpec = SPEC, since: float = NOW) -> Placed:
    model = Model(spec.model_name, None, 5, lambda: world.now)
    return await keeper.plan(model, spec, None, since)


async def learn(
    world: World, keeper: MemoryPlanner, name: str, holds_gb: float, **fields: Any
) -> InstanceSpec:
    """Let a model run and be measured, and end; its spec."""
    one = world.add(name, holds_gb, **fields)
    await keeper.overdrawn()
    world.manager.instances.remove(one)
    return one.spec


# What is measured


async def test_what_an_instance_holds_is_its_memory_and_its_models_peak(world: World) -> None:
    keeper, one = world.keeper(), world.add("a", 3)
    world.held["a"]["GPU-0"] = GB
    assert await keeper.overdrawn() == ()
    assert one.memory_bytes == 4 * GB
    world.held["a"] = {HOST: 2 * GB}
    await keeper.overdrawn()
    assert one.memory_bytes == 2 * GB
    world.manager.instances.remove(one)
    again = Measurements(world.manager.config.log_dir / "state")  # it has been saved
    assert again.peak(room_module._kind(one.spec)).host_bytes == 3 * GB


async def test_what_starts_shows_its_memory_and_leaves_no_peak(world: World) -> None:
    one = world.add("a", 3)
    one.state = InstanceState.HEALTH_CHECKING
    await world.keeper().overdrawn()
    assert one.memory_bytes == 3 * GB
    assert world.measurements.peak(room_module._kind(one.spec)) is None


@pytest.mark.parametrize(
    "change",
    [{"level": 1, "state": InstanceState.SLEEPING}, {"spawns": 2}, {"state": InstanceState.STOPPING}],
)
async def test_who_changes_while_it_is_measured_is_measured_another_time(
    world: World, change: dict[str, Any]
) -> None:
    """Or what it held awake would count as what it holds asleep, and sleeping as of no use."""
    one = world.add("a", 8)

    def fall_asleep() -> None:
        for name, value in change.items():
            setattr(one, name, value)

    world.while_measuring = fall_asleep
    await world.keeper().overdrawn()
    assert one.memory_bytes is None
    kind = room_module._kind(one.spec)
    assert [world.measurements.peak(kind, level) for level in (0, 1)] == [None, None]


async def test_peaks_that_cannot_be_kept_are_told_and_harm_nothing(
    world: World, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where the folder is to be")
    one = world.add("a", 3)
    assert await world.keeper().overdrawn() == ()
    assert one.memory_bytes == 3 * GB
    assert "can't be kept" in caplog.text


# What is asked of the policy


async def test_a_model_that_was_never_measured_gets_its_try(world: World) -> None:
    world.add("a", 9.9)
    placed = await plan(world, world.keeper())
    assert (placed.plan, placed.devices, placed.fills) == (Fits(), None, {HOST})


async def test_the_one_used_longest_ago_goes_for_what_was_measured(world: World) -> None:
    keeper = world.keeper(min_residency_s=0)
    spec = await learn(world, keeper, "new", 4)
    world.add("old", 4, used=10)
    world.add("newer", 4, used=20)
    placed = await plan(world, keeper, spec)
    assert placed.plan == Evict((EvictionStep("old", EvictionAction.STOP, must_drain=False),))


async def test_the_pinned_stay_and_who_is_in_use_has_its_time(world: World) -> None:
    keeper = world.keeper(min_residency_s=0, max_wait_s=60)
    spec = await learn(world, keeper, "new", 4)
    world.add("pinned", 4, used=10, pinned=True)
    busy = world.add("busy", 4, used=20)
    busy.gate.try_acquire()
    placed = await plan(world, keeper, spec)
    assert isinstance(placed.plan, Wait) and placed.plan.until == NOW + 60
    placed = await plan(world, keeper, spec, since=NOW - 60)
    assert placed.plan == Evict((EvictionStep("busy", EvictionAction.STOP, must_drain=True),))
    busy.pinned = True
    placed = await plan(world, keeper, spec, since=NOW - 60)
    assert isinstance(placed.plan, NeverFits)
    assert "pinned" in placed.plan.message


async def test_a_refusal_names_what_helps(world: World) -> None:
    spec = InstanceSpec(str(DEMO), "engine", params={"kv_cache_memory_bytes": "6G"}, devices=())
    placed = await plan(world, world.keeper(host_gb=1), spec)
    assert isinstance(placed.plan, NeverFits)
    assert "GiB of host memory, whose budget is 0.93 GiB. What helps: " in placed.plan.message
    assert "a smaller KV cache (kv_cache_memory_bytes)" in placed.plan.message
    assert "raise HOST_MEMORY (it allows 0.93 GiB of" in placed.plan.message
    placed = await plan(world, world.keeper(host_gb=0.1), spec)
    assert isinstance(placed.plan, NeverFits)
    assert "kv_cache_memory_bytes" not in placed.plan.message, "even without a cache it is too large"


@pytest.mark.parametrize("state", [InstanceState.RUNNING, InstanceState.SLEEPING, InstanceState.WAKING])
async def test_whoever_runs_without_its_files_keeps_nobody_else_from_starting(
    world: World, state: InstanceState, tmp_path: Path
) -> None:
    """They were deleted, or a link in the hub's cache leads nowhere, before it was measured."""
    keeper = world.keeper(min_residency_s=0)
    spec = await learn(world, keeper, "new", 4)
    for name in ("deleted", "pruned"):
        (folder := tmp_path / name).mkdir()
        (folder / "config.json").write_text("{}")
        one = world.add(str(folder), 4, engine="engine", command=None)
        one.state, one.level = state, int(state is InstanceState.SLEEPING)
    (folder / "model.gguf").symlink_to("../../blobs/none")
    shutil.rmtree(tmp_path / "deleted")
    for _ in range(2):
        assert not isinstance((await plan(world, keeper, spec)).plan, NeverFits)
        await keeper.overdrawn()
    sleeper = world.manager.instances[0]
    assert (await keeper.plan(world.model("deleted"), None, sleeper, NOW)).plan == Fits()


async def test_what_starts_counts_with_what_it_will_need_and_is_not_disturbed(world: World) -> None:
    keeper = world.keeper(min_residency_s=0)
    spec = await learn(world, keeper, "new", 4)
    await learn(world, keeper, "starts", 8)
    starts = world.add("starts", 0.1)
    starts.state = InstanceState.STARTING
    placed = await plan(world, keeper, spec)
    assert isinstance(placed.plan, Wait) and placed.plan.until is None
    world.held["starts"] = {HOST: 12 * GB}
    assert await keeper.overdrawn() == ()
    starts.state = InstanceState.RUNNING
    (step,) = await keeper.overdrawn()
    assert step.instance_id == "starts"


async def test_what_runs_counts_with_the_most_that_its_model_has_held(world: World) -> None:
    """A cache that fills as it is used: what has just started holds little, and will hold more."""
    keeper = world.keeper(min_residency_s=0)
    spec = await learn(world, keeper, "new", 4)
    await learn(world, keeper, "grows", 7)
    world.add("grows", 1)
    assert (await plan(world, keeper, spec)).plan == Evict(
        (EvictionStep("grows", EvictionAction.STOP, must_drain=False),)
    )


@pytest.mark.parametrize(
    ("params", "fits"),
    [({"kv_cache_memory_bytes": "1G"}, True), ({"kv_cache_memory_bytes": "1.25G"}, False), ({}, True)],
)
async def test_an_engine_that_grows_counts_with_what_it_was_promised(
    world: World, params: dict[str, Any], fits: bool
) -> None:
    """It was measured when it had just started. Of a cache that nobody has asked for counts what is used."""
    keeper = world.keeper(host_gb=2, min_residency_s=0)
    spec = await learn(world, keeper, "new", 0.6)
    world.add(str(DEMO), 0.3, engine="engine", command=None, params=params)
    sleep = Evict((EvictionStep(str(DEMO), EvictionAction.SLEEP1, must_drain=False),))
    for _ in range(2):  # the second time its estimate is known already
        assert (await plan(world, keeper, spec)).plan == (Fits() if fits else sleep)


async def test_what_wakes_is_not_disturbed_either(world: World) -> None:
    keeper = world.keeper(min_residency_s=0)
    spec = await learn(world, keeper, "new", 4)
    wakes = world.add("wakes", 8)
    wakes.level, wakes.state = 1, InstanceState.WAKING
    placed = await plan(world, keeper, spec)
    assert isinstance(placed.plan, Wait) and placed.plan.until is None
    wakes.state = InstanceState.SLEEPING
    assert isinstance((await plan(world, keeper, spec)).plan, Evict)


async def test_what_stops_is_waited_for(world: World) -> None:
    keeper = world.keeper(min_residency_s=0)
    spec = await learn(world, keeper, "new", 4)
    world.add("other", 1, used=5)
    world.add("leaves", 8).state = InstanceState.STOPPING
    placed = await plan(world, keeper, spec)
    assert isinstance(placed.plan, Wait)
    assert "leaves" in placed.plan.reason


async def test_a_sleeper_needs_what_it_has_given_back(world: World) -> None:
    keeper = world.keeper(min_residency_s=0)
    sleeper = world.add("sleeper", 8)
    await keeper.overdrawn()
    world.held["sleeper"] = {HOST: 3 * GB}
    sleeper.level, sleeper.state = 2, InstanceState.SLEEPING
    world.add("other", 2)
    model = Model("sleeper", None, 5, lambda: NOW)
    assert (await keeper.plan(model, None, sleeper, NOW)).plan == Fits()
    world.held["other"] = {HOST: 3 * GB}
    placed = await keeper.plan(model, None, sleeper, NOW)
    assert placed.plan == Evict((EvictionStep("other", EvictionAction.STOP, must_drain=False),))


async def test_gpus_are_chosen_where_the_spec_names_none(world: World) -> None:
    world.gpus = (gpu(0, free_gb=10), gpu(1, free_gb=70))
    keeper = world.keeper()
    placed = await plan(world, keeper)
    assert (placed.devices, placed.fills) == (("GPU-1",), {"GPU-1"})
    named = InstanceSpec("m", "command", command=("x",), devices=("0",))
    placed = await plan(world, keeper, named)
    assert (placed.devices, placed.fills) == (("GPU-0",), {"GPU-0"})
    without = InstanceSpec("m", "command", command=("x",), devices=())
    placed = await plan(world, keeper, without)
    assert (placed.devices, placed.fills) == ((), {HOST})


# What is done


async def test_who_holds_more_than_all_may_is_told_of_unless_in_use(world: World) -> None:
    keeper = world.keeper(host_gb=10, min_residency_s=0)
    world.add("a", 6, used=10)
    busy = world.add("b", 6, used=5)
    lease = busy.gate.try_acquire()
    assert lease is not None
    assert await keeper.overdrawn() == (EvictionStep("a", EvictionAction.STOP, must_drain=False),)
    world.held["a"] = {HOST: 4 * GB}
    assert await keeper.overdrawn() == ()


async def test_where_little_is_left_is_watched_closely(world: World) -> None:
    keeper = world.keeper(host_gb=10)
    world.gpus = (gpu(0, free_gb=1),)
    world.add("a", 7)
    world.held["a"]["GPU-0"] = 75 * GB  # an engine takes of a GPU what it is given, and never more
    await keeper.overdrawn()
    assert not keeper.is_tight
    world.held["a"][HOST] = 9 * GB
    await keeper.overdrawn()
    assert keeper.is_tight


async def test_who_holds_too_much_and_is_always_in_use_is_drained_in_the_end(world: World) -> None:
    keeper = world.keeper(host_gb=10, min_residency_s=0, max_wait_s=60)
    leases = [world.add(name, 6, used=used).gate.try_acquire() for name, used in (("a", 10), ("b", 5))]
    assert all(leases)
    assert await keeper.overdrawn() == ()
    world.now += 30
    world.held["b"] = {HOST: 3 * GB}
    assert await keeper.overdrawn() == ()  # it is not overdrawn: the time begins anew
    world.held["b"] = {HOST: 6 * GB}
    for _ in range(2):
        world.now += 30
        assert await keeper.overdrawn() == ()
    world.now += 30
    assert await keeper.overdrawn() == (EvictionStep("b", EvictionAction.STOP, must_drain=True),)


async def test_steps_are_done_in_their_order_and_told(world: World) -> None:
    for name in ("a", "b", "c"):
        world.add(name, 1)
    world.manager.refuses = "b"
    told: list[Event] = []
    world.manager.events.add_listener(told.append)
    steps = [
        EvictionStep("a", EvictionAction.SLEEP2, must_drain=False),
        EvictionStep("b", EvictionAction.SLEEP1, must_drain=False),  # has gone its own way: the next goes on
        EvictionStep("c", EvictionAction.STOP, must_drain=True),
    ]
    await world.keeper().make(steps, for_whom="new")
    assert world.manager.acts == [("sleep", "a", 2), ("stop", "c", "made room for new", True)]
    evicted = [(event.instance_id, event.data) for event in told if event.type == "instance.evicted"]
    assert evicted == [
        ("a", {"action": "sleep2", "for": "new"}),
        ("b", {"action": "sleep1", "for": "new"}),
        ("c", {"action": "stop", "for": "new"}),
    ]


async def test_a_gpus_memory_is_waited_for_until_the_driver_has_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.gpus = (gpu(0, free_gb=10), gpu(1))
    world.add("a", 1)
    world.held["a"]["GPU-0"] = 50 * GB
    waited: list[tuple[Any, ...]] = []

    async def wait_until_freed(*args: Any) -> bool:
        waited.append(args[:2])
        return True

    monkeypatch.setattr(room_module, "wait_until_freed", wait_until_freed)
    await world.keeper().make([EvictionStep("a", EvictionAction.STOP, must_drain=False)], for_whom="b")
    assert waited == [("GPU-0", 55 * GB)]  # most of it: others may take some meanwhile


async def test_the_idle_one_used_longest_ago_gives_its_place(world: World) -> None:
    keeper = world.keeper(min_residency_s=10, max_wait_s=60)
    world.manager.has_free_slot = False
    assert isinstance((await plan(world, keeper)).plan, NeverFits)  # nobody is there to go
    world.add("pinned", 1, used=1, pinned=True)
    world.add("busy", 1, used=2).gate.try_acquire()
    world.add("young", 1, used=NOW - 5)
    world.add("idle", 1, used=50)
    world.add("longer", 1, used=40)
    step = EvictionStep("longer", EvictionAction.STOP, must_drain=False)
    assert (await plan(world, keeper)).plan == Evict((step,))
    world.manager.has_free_slot = True
    assert isinstance((await plan(world, keeper)).plan, Fits)


async def test_one_in_use_gives_its_place_after_the_longest_wait_and_drains(world: World) -> None:
    keeper = world.keeper(min_residency_s=0, max_wait_s=60)
    world.manager.has_free_slot = False
    world.add("busy", 1).gate.try_acquire()
    waits = (await plan(world, keeper)).plan
    assert waits == Wait(NOW + 60, "m waits for a place: busy in use")
    step = EvictionStep("busy", EvictionAction.STOP, must_drain=True)
    assert (await plan(world, keeper, since=NOW - 60)).plan == Evict((step,))


async def test_one_that_starts_or_stops_is_waited_for(world: World) -> None:
    keeper = world.keeper(min_residency_s=0)
    world.manager.has_free_slot = False
    one = world.add("starts", 1)
    one.state = InstanceState.STARTING
    assert isinstance((await plan(world, keeper, since=0)).plan, Wait)
    one.state = InstanceState.STOPPING
    assert isinstance((await plan(world, keeper)).plan, Wait)


async def test_a_sleeper_gives_its_place_however_short_it_was_awake(world: World) -> None:
    world.manager.has_free_slot = False
    sleeper = world.add("sleeper", 1, used=NOW - 1)
    keeper = world.keeper(min_residency_s=10)
    sleeper.awake_since = NOW - 1
    assert isinstance((await plan(world, keeper)).plan, Wait)
    sleeper.level, sleeper.state = 1, InstanceState.SLEEPING
    step = EvictionStep("sleeper", EvictionAction.STOP, must_drain=False)
    assert (await plan(world, keeper)).plan == Evict((step,))
    assert isinstance((await keeper.plan(world.model("sleeper"), None, sleeper, NOW)).plan, Fits), (
        "it has one"
    )


async def test_where_no_place_can_be_made_it_is_told_why(world: World) -> None:
    world.manager.has_free_slot = False
    world.add("pinned", 1, pinned=True)
    never = (await plan(world, world.keeper())).plan
    assert never == NeverFits(
        "m needs one more place for an instance, of which there are 1; pinned (pinned) keeps one: "
        "all are taken"
    )


async def test_what_is_too_large_is_not_told_that_a_place_would_help(world: World) -> None:
    world.manager.has_free_slot = False
    world.add("other", 0.1)
    spec = InstanceSpec(str(DEMO), "engine", params={"kv_cache_memory_bytes": "6G"}, devices=())
    never = (await plan(world, world.keeper(host_gb=1), spec)).plan
    assert isinstance(never, NeverFits)
    assert "all are taken" not in never.message and "place" not in never.message
    assert "What helps: " in never.message


# With a real engine


async def test_a_real_engine_is_measured_with_its_whole_group_until_it_ends(
    managing: ManagerFactory, tmp_path: Path
) -> None:
    async with managing(stop_grace_s=0.3) as manager, asyncio.timeout(60):
        keeper = MemoryPlanner(
            manager, MemoryPlannerConfig(), Measurements(tmp_path / "state"), GpuDriver({})
        )
        instance = await running(manager, fake("--grandchild"))
        assert instance.memory_bytes is None
        await keeper.overdrawn()
        assert instance.memory_bytes is not None and 2_000_000 < instance.memory_bytes < 500_000_000
        await manager.stop(instance.instance_id, force=True)
        assert instance.memory_bytes is None
