"""Random concurrent actions from a seed; a flood of log output; reading logs; old instances."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from instance_manager.errors import ManagerError
from instance_manager.lifecycle import expiry
from instance_manager.manager import InstanceManager
from instance_manager.types import InstanceState
from tests.instance_manager.conftest import ManagerFactory, fake, marked, running, until_state

NAMES = ["a", "b", "c"]


async def random_action(manager: InstanceManager, rng: random.Random) -> None:
    name = rng.choice(NAMES)
    match rng.choice(
        ["create", "create", "start", "stop", "force", "restart", "delete", "use", "use", "wait"]
    ):
        case "create":
            manager.create(fake(*rng.choice([(), ("--grandchild",), ("--slow-start", "0.1")]), name=name))
        case "start":
            manager.start(name)
        case "stop":
            await manager.stop(name)
        case "force":
            await manager.stop(name, force=True)
        case "restart":
            await manager.restart(name)
        case "delete":
            await manager.delete(name, force=rng.random() < 0.5)
        case "use":
            async with manager.lease(name) as lease:
                assert lease.instance_id == name
                await asyncio.sleep(rng.random() * 0.05)
        case "wait":
            await manager.wait_ready(name, 0.05)


async def client(manager: InstanceManager, seed: int) -> int:
    """Thirty random actions; each may be refused, and a fifth of them are cancelled by a timeout."""
    rng = random.Random(seed)
    done = 0
    for _ in range(30):
        try:
            async with asyncio.timeout(rng.random() * 0.1 if rng.random() < 0.2 else 60):
                await random_action(manager, rng)
            done += 1
        except (ManagerError, TimeoutError):
            await asyncio.sleep(rng.random() * 0.01)
    return done


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_storm_of_actions_ends_in_a_clean_state(
    managing: ManagerFactory, seed: int, mark: str
) -> None:
    async with managing(stop_grace_s=0.2, drain_timeout_s=1.0, max_instances=3) as manager:
        clients = [asyncio.create_task(client(manager, seed * 100 + number)) for number in range(4)]
        done = await asyncio.gather(*clients)
        assert sum(done) > 20
        survivors = manager.list(include_terminal=True)
        live = [instance for instance in survivors if not instance.state.is_terminal]
        for instance in live:
            await manager.wait_ready(instance.instance_id, 30)
            # Stopped is valid too: by a stop whose caller timed out.
            assert instance.state in (InstanceState.RUNNING, InstanceState.STOPPED), instance.record()
            assert instance.gate.in_flight == instance.gate.queued == 0
        ports = [instance.port for instance in live if instance.state is InstanceState.RUNNING]
        assert len(set(ports)) == len(ports)
        assert None not in ports
        for instance in survivors:
            await manager.delete(instance.instance_id)
        assert marked(mark) == []
        for _ in range(3):  # all ports are free again
            manager.create(fake())
    assert marked(mark) == []


@pytest.mark.parametrize("seed", range(3))
async def test_of_many_creations_with_one_name_exactly_one_succeeds(
    manager: InstanceManager, seed: int
) -> None:
    async def create() -> bool:
        try:
            manager.create(fake(name="same"))
        except ManagerError:
            return False
        return True

    assert sum(await asyncio.gather(*(create() for _ in range(10)))) == 1
    await asyncio.gather(*(manager.delete("same", force=bool((seed + i) % 2)) for i in range(5)))
    assert manager.list(include_terminal=True) == []


async def test_a_flood_of_log_output_does_not_stall_the_loop(managing: ManagerFactory) -> None:
    async with managing(log_max_bytes=1_000_000) as manager:
        instance = await running(manager, fake("--print-mb", "30"))
        worst = 0.0
        followed = manager.follow_log(instance.instance_id, 0)

        async def wait_for_end() -> None:
            async for line in followed:
                if line == "flood over":
                    return

        reader = asyncio.create_task(wait_for_end())
        while not reader.done():
            began = time.monotonic()
            await asyncio.sleep(0.005)
            worst = max(worst, time.monotonic() - began)
        assert worst < 0.5  # the loop stays responsive
        assert manager.read_log(instance.instance_id, 1) == ["flood over"]
        assert len(manager.read_log(instance.instance_id, 10_000)) <= manager.config.log_ring_lines
        assert instance.log_path.stat().st_size < 35_000_000
        await manager.stop(instance.instance_id)


async def test_logs_can_be_read_and_followed_to_the_end(manager: InstanceManager) -> None:
    instance = await running(manager, fake("--die-after", "0.3"))
    followed = manager.follow_log(instance.instance_id, 10)
    assert await anext(followed) == f"listening on {instance.port}"
    assert [line async for line in followed] == []  # it ends with the engine
    assert manager.read_log(instance.instance_id, 5)[-1].startswith("listening on")
    manager.start(instance.instance_id)
    await until_state(instance, InstanceState.RUNNING)
    await until_state(instance, InstanceState.FAILED)
    assert len(manager.read_log(instance.instance_id, 5)) == 2  # of both runs


async def test_the_oldest_ended_instances_without_a_name_are_deleted(
    manager: InstanceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "_MAX_ENDED", 2)
    named = manager.create(fake("--fail-with", "x", name="named"))
    await until_state(named, InstanceState.FAILED)
    ids = []
    for _ in range(4):
        instance = manager.create(fake("--fail-with", "x"))
        ids.append(instance.instance_id)
        await until_state(instance, InstanceState.FAILED)
    deleted: list[str] = []
    async for event in manager.events.subscribe(after=0):
        if event.type == "instance.deleted":
            deleted.append(event.instance_id)
        if len(deleted) == 2:
            break
    assert deleted == ids[:2]
    assert [i.instance_id for i in manager.list(include_terminal=True)] == ["named", *ids[2:]]
