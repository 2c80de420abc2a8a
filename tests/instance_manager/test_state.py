"""What the manager stores: written in order, despite faults, and recovered by the next manager."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instance_manager.config import ManagerConfig
from instance_manager.errors import IdempotencyKeyReused, InstanceExists, NoCapacity
from instance_manager.events import EventLog
from instance_manager.manager import InstanceManager
from instance_manager.state.keeper import StateKeeper
from instance_manager.state.session import StateSession
from instance_manager.state.stores.base import StateStore
from instance_manager.state.stores.errors import LeaseLost, PortHeld, StoreError, StoreInUse, StoreUnavailable
from instance_manager.state.stores.memory import MemoryStore
from instance_manager.state.stores.open import open_store
from instance_manager.state.stores.records import Commit, InstanceRecord, PortHold, Usage, Write
from instance_manager.state.usage import UsageMeter
from instance_manager.types import InstanceSpec, InstanceState
from tests.instance_manager.conftest import fake, running
from tests.instance_manager.stores.redis_process import REDIS_SERVER, RedisProcess

Keeping = Callable[..., AbstractAsyncContextManager[InstanceManager]]


@pytest.fixture
def keeping(config: ManagerConfig, tmp_path: Path) -> Keeping:
    """`async with keeping("a", state_url=…) as manager`: a node whose STATE_DIR is the folder `a`."""

    @asynccontextmanager
    async def make(folder: str = "a", **changes: Any) -> AsyncIterator[InstanceManager]:
        state_dir = tmp_path / folder
        own = {"state_dir": state_dir, "run_dir": state_dir / "run", "state_url": "sqlite:///berth.db"}
        manager = InstanceManager(replace(config, **{**own, **changes}))
        async with manager.run():
            yield manager

    return make


async def test_stopped_instances_are_recovered_by_the_next_process(keeping: Keeping, tmp_path: Path) -> None:
    async with keeping() as manager:
        one = await running(manager, fake(name="one", timeout_s=50.0, env={"HF_TOKEN": "hidden"}))
        await running(manager, fake(name="gone"))
        await manager.delete("gone")
        seen = manager.events.last_event_id
        created_at = one.created_at
        assert manager.state.keeper.status.trouble is None
    async with keeping() as manager:
        (one,) = manager.list(include_terminal=True)
        assert (one.instance_id, one.state, one.created_at) == ("one", InstanceState.STOPPED, created_at)
        assert (one.port, one.pid, one.idle_timeout_s) == (None, None, 50.0)
        assert await manager.state.store.ports() == []
        assert manager.events.last_event_id >= seen
        assert next(event.event_id for event in manager.events.since(seen - 1)) == seen
        manager.start("one")
        assert (await manager.wait_ready("one", 60)).state is InstanceState.RUNNING
        (hold,) = await manager.state.store.ports()
        assert (hold.port, hold.instance_id) == (one.port, "one")
    for path in (tmp_path / "a").glob("berth.db*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name.endswith(".lock"), path


async def test_a_state_directory_belongs_to_one_process(keeping: Keeping) -> None:
    async with keeping():
        with pytest.raises(StoreInUse, match="STATE_DIR"):
            async with keeping(state_url="memory://"):
                pass
    async with keeping(state_url="memory://"):
        pass


async def test_an_idempotency_key_creates_one_instance(keeping: Keeping) -> None:
    """Also across restarts, and if the first try ended between the claim and the record."""
    spec = fake()
    async with keeping() as manager:
        answers = await asyncio.gather(*(manager.create_once(spec, "key") for _ in range(5)))
        assert len({one.instance_id for one in answers}) == 1 == len(manager.list())
        with pytest.raises(IdempotencyKeyReused):
            await manager.create_once(replace(spec, pinned=True), "key")
        await manager.state.claim("claimed", spec, "fake-claimed")
    async with keeping(max_instances=1) as manager:
        assert (await manager.create_once(spec, "key")).instance_id == answers[0].instance_id
        assert (await manager.create_once(spec, "claimed")).instance_id == "fake-claimed"
        with pytest.raises(NoCapacity):
            await manager.create_once(spec, "too much")
        await manager.delete("fake-claimed", force=True)
        assert (await manager.create_once(spec, "too much")).instance_id != "fake-claimed"


async def test_usage_is_added_up_over_restarts(keeping: Keeping) -> None:
    async with keeping() as manager:
        manager.usage.add("alice", "demo", 1, 10, 5)
        manager.usage.add("alice", "demo", 1, 1, 1)
        manager.usage.add("bob", "demo", 1, 0, 2)
        assert len(await manager.usage.totals(manager.state.store)) == 2
    async with keeping() as manager:
        manager.usage.add("alice", "demo", 1, 1, 1)
        assert await manager.usage.totals(manager.state.store) == [
            Usage("alice", "demo", 3, 12, 7),
            Usage("bob", "demo", 1, 0, 2),
        ]


async def test_a_database_that_cannot_be_written_blocks_no_instance(
    keeping: Keeping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program locks the database: instances start and stop, and all is written afterwards."""
    monkeypatch.setattr("instance_manager.state.stores.sqlite.BUSY_TIMEOUT_S", 0.05)
    async with keeping() as manager:
        await running(manager, fake(name="one"))
        keeper = manager.state.keeper
        holder = sqlite3.connect(tmp_path / "a" / "berth.db", isolation_level=None)
        try:
            holder.execute("BEGIN IMMEDIATE")
            two = await running(manager, fake(name="two"))
            await until(lambda: keeper.status.trouble is not None)
            assert two.gate.is_open
        finally:
            holder.close()
        await until(lambda: keeper.status.trouble is None and keeper.status.num_unwritten == 0)
        stored = await manager.state.store.get("two")
        assert stored is not None and stored.state is InstanceState.RUNNING
        events = await manager.state.store.events_since(0)
        assert [event.event_id for event in events] == [one.event_id for one in manager.events.since(0)]


@pytest.mark.skipif(REDIS_SERVER is None, reason="redis-server is not installed")
async def test_nodes_on_one_redis_see_each_other(
    keeping: Keeping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instance_manager.state.session._LEASE_S", 1.0)
    server = RedisProcess(tmp_path)
    server.start()
    try:
        async with keeping("a", state_url=server.url) as one, keeping("b", state_url=server.url) as two:
            mine = await running(one, fake(name="shared"))
            with pytest.raises(InstanceExists, match="another node"):
                await two.create_once(fake(name="shared"))
            assert two.list(include_terminal=True) == []
            other = await running(two, fake(name="other"))
            assert other.port != mine.port  # both have the same range
            await two.state.keeper.settled("other")
            found = await until_some(one.state.instances_of_peers)
            assert [(record.instance_id, is_alive) for record, is_alive in found] == [("other", True)]
            assert mine.state is InstanceState.RUNNING

            async with await open_store(server.url, tmp_path) as usurper:
                await usurper.acquire_lease(one.state.session.owner, 10.0, take_over=True)
                await until(lambda: one.state.keeper.status.is_deposed)
                with pytest.raises(LeaseLost):
                    await one.create_once(fake())
            assert mine.gate.is_open
    finally:
        server.kill()


@pytest.mark.skipif(REDIS_SERVER is None, reason="redis-server is not installed")
@pytest.mark.parametrize(
    "words", [b"DEL {berth}:leases", b"DEL {berth}:records {berth}:versions", b"FLUSHALL"]
)
async def test_losing_the_lease_without_a_successor_deposes_no_node(
    keeping: Keeping, tmp_path: Path, words: bytes
) -> None:
    server = RedisProcess(tmp_path)
    server.start()
    try:
        async with keeping("a", state_url=server.url) as manager:
            await running(manager, fake(name="one"))
            server.say(words)
            await running(manager, fake(name="two"))
            async with await open_store(server.url, tmp_path) as other:
                await until_some(lambda: _states(other, "running", "running"))
                owners = await other.owners()
            assert [owner.owner for owner in owners] == [manager.state.session.owner]
            assert not manager.state.keeper.status.is_deposed
            await manager.delete("one", force=True)
    finally:
        server.kill()


async def _states(store: StateStore, *expected: str) -> bool:
    return [record.state for record in await store.records()] == list(expected)


async def test_a_database_damaged_while_open_gets_every_record_again(
    keeping: Keeping, tmp_path: Path
) -> None:
    """Including those of unchanged instances, with their ports."""
    async with keeping() as manager:
        names = ("one", "two")
        for name in names:
            await running(manager, fake(name=name))
        await until(lambda: manager.state.keeper.status.num_unwritten == 0)
        with sqlite3.connect(tmp_path / "a" / "berth.db") as damaging:
            damaging.execute("DELETE FROM ports")
            damaging.execute("DROP TABLE records")
        damaging.close()
        await manager.stop("one", force=True)
        store = manager.state.store
        await until_some(lambda: _states(store, "stopped", "running"))
        assert [hold.instance_id for hold in await store.ports()] == ["two"]


# The keeper against a store that refuses: no real store can be made to do so at the right moment.


class Refusing(MemoryStore):
    """Refuses the next writes with these errors. `on_commit` is called in the middle of the next write."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[StoreError] = []
        self.on_commit: Callable[[], None] | None = None

    async def commit(self, write: Write) -> Commit:
        if self.errors:
            raise self.errors.pop(0)
        commit = await super().commit(write)
        if self.on_commit is not None:
            on_commit, self.on_commit = self.on_commit, None
            on_commit()
        return commit


class Books:
    """Instances to write: a state and a port each."""

    def __init__(self) -> None:
        self.store = Refusing()
        self.events = EventLog()
        self.records: dict[str, InstanceRecord] = {}
        self.keeper = StateKeeper(StateSession(self.store, "me", None), self.records.get)
        self.events.add_listener(self.keeper.on_event)

    def put(self, name: str, owner: str = "me", **fields: Any) -> None:
        record = InstanceRecord(name, InstanceState.RUNNING, owner, InstanceSpec("m", "command"), **fields)
        self.records[name] = record
        self.events.publish("instance.state", name, {"status": "running"})

    def drop(self, name: str) -> None:
        del self.records[name]
        self.events.publish("instance.deleted", name)


@pytest.fixture
async def books() -> AsyncIterator[Books]:
    books = Books()
    task = asyncio.create_task(books.keeper.run())
    try:
        yield books
        await books.keeper.finish()
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_many_changes_become_few_writes_in_order(books: Books) -> None:
    for number in range(700):
        books.put("one", port=9000 + number)
    books.put("two")
    books.drop("two")
    await books.keeper.written("one")
    (record,) = await books.store.records()
    assert (record.port, record.version) == (9699, 2)
    events = await books.store.events_since(0)
    assert events == [replace(kept) for kept in books.events.since(0)]


async def test_events_that_overflow_during_a_write_lose_only_those_already_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oldest are dropped from memory while they are being written: none of the newer may go with them."""
    monkeypatch.setattr("instance_manager.state.keeper._MAX_EVENTS", 10)
    books = Books()
    for number in range(8):
        books.put("one", port=9000 + number)

    def publish_six_more() -> None:
        for number in range(6):
            books.put("one", port=9100 + number)

    books.store.on_commit = publish_six_more
    task = asyncio.create_task(books.keeper.run())
    try:
        await books.keeper.written("one")
        await books.keeper.finish()
        assert await books.store.events_since(0) == books.events.since(0)
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_ports_follow_their_instances(books: Books) -> None:
    node = StateSession(books.store, "me", None).node
    books.put("one", port=9000)
    await books.keeper.written("one")
    books.put("one", port=None)
    books.put("two", port=9000)
    await books.keeper.written("two")
    assert await books.store.ports() == [PortHold(node, 9000, "two")]
    books.drop("two")
    await books.keeper.written("two")
    assert (await books.store.ports(), [one.instance_id for one in await books.store.records()]) == (
        [],
        ["one"],
    )
    await books.store.commit(Write(hold=PortHold(node, 9001, "stranger")))
    books.put("one", port=9001)
    with pytest.raises(PortHeld):
        await books.keeper.written("one")


async def test_a_full_disk_does_not_block_a_caller_that_waits_for_a_write(books: Books) -> None:
    books.store.errors = [StoreUnavailable("the disk is full")]
    books.put("one")
    await books.keeper.written("one")
    assert books.keeper.status.trouble == "the disk is full"
    await until(lambda: books.keeper.status.num_unwritten == 0)
    assert len(await books.store.records()) == 1
    assert books.keeper.status.trouble is None


async def test_a_record_that_the_store_lost_or_another_node_owns(books: Books) -> None:
    """An emptied store gets our record again; a record that another node owns is left alone."""
    books.put("one")
    await books.keeper.written("one")
    await books.store.delete("one", 1)
    books.put("one", port=9000)
    await books.keeper.written("one")
    (record,) = await books.store.records()
    assert (record.port, record.version) == (9000, 1)

    theirs = InstanceRecord("two", InstanceState.RUNNING, "them", InstanceSpec("m", "command"))
    await books.store.put(theirs, 0)
    books.put("two")
    with pytest.raises(InstanceExists):
        await books.keeper.written("two")
    books.drop("two")
    await books.keeper.written("two")
    kept = await books.store.get("two")
    assert kept is not None and kept.owner == "them"
    books.put("three")
    await books.keeper.written("three")


async def test_a_record_that_cannot_be_stored_does_not_block_others(tmp_path: Path) -> None:
    """In a real file, which stores text only."""
    config = ManagerConfig(state_dir=tmp_path, state_url="sqlite:///berth.db")
    session = await StateSession.open(config)
    spec = InstanceSpec("m", "command", params={"odd": object()})
    odd = InstanceRecord("odd", InstanceState.RUNNING, session.owner, spec)
    plain = replace(odd, instance_id="plain", spec=replace(spec, params={}))
    keeper = StateKeeper(session, {"odd": odd, "plain": plain}.get)
    task = asyncio.create_task(keeper.run())
    try:
        keeper.mark("odd")
        await keeper.written("plain")
        assert [one.instance_id for one in await session.store.records()] == ["plain"]
        assert keeper.status.num_unwritten == 0
    finally:
        task.cancel()
        await asyncio.wait((task,))
        await session.close()


async def test_a_deposed_node_writes_no_more(books: Books) -> None:
    books.store.errors = [LeaseLost("taken over")]
    books.put("one")
    await books.keeper.written("one")
    assert books.keeper.status.is_deposed
    with pytest.raises(LeaseLost):
        books.keeper.check_is_owner()
    books.put("one")
    await books.keeper.written("one")
    assert await books.store.records() == []


async def test_usage_waits_for_a_store_that_is_away() -> None:
    store, meter = Refusing(), UsageMeter()
    store.errors = [StoreUnavailable("away")]
    meter.add("alice", "demo", 1, 2, 3)
    await meter.flush(store)
    meter.add("alice", "demo", 1, 2, 3)
    assert await meter.totals(store) == [Usage("alice", "demo", 2, 4, 6)]
    await meter.flush(store)
    assert await store.usage() == await meter.totals(store) == [Usage("alice", "demo", 2, 4, 6)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing reports it
            await asyncio.sleep(0.01)


async def until_some(ask: Callable[[], Any]) -> Any:
    async with asyncio.timeout(30):
        while not (found := await ask()):  # noqa: ASYNC110 - nothing reports it
            await asyncio.sleep(0.01)
        return found
