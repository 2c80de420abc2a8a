"""Redis killed, frozen, emptied, out of reach for one of two nodes: nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from instance_manager.state.stores import Change, ChangeKind, NewEvent, PortHold, StateStore, Usage, Write
from instance_manager.state.stores.errors import Conflict, LeaseLost, StoreInUse, StoreUnavailable
from instance_manager.state.stores.records import Owner
from instance_manager.state.stores.redis import RedisStore
from instance_manager.state.stores.redis_link import ExpectedData
from tests.instance_manager.stores.conftest import a_record, needs_redis
from tests.instance_manager.stores.redis_process import RedisProcess
from tests.instance_manager.stores.relay import Relay

pytestmark = needs_redis

EVENT = NewEvent("instance.state", "one", 1.0, {"n": 1})


@pytest.fixture(params=[True, False], ids=["keeps its data", "loses its data"])
def own_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path, keep=request.param)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def relay(redis_server: RedisProcess) -> AsyncIterator[Relay]:
    redis_server.flush()
    async with Relay(redis_server.url) as line:
        yield line


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for gives no event
            await asyncio.sleep(0.01)


async def next_change(changes: AsyncIterator[Change], kind: ChangeKind) -> Change:
    async with asyncio.timeout(30):
        async for change in changes:
            if change.kind is kind:
                return change
    raise AssertionError(f"the store was closed before {kind}")


async def everything(store: StateStore) -> tuple[object, ...]:
    return (await store.records(), await store.events_since(0), await store.ports(), await store.usage())


async def test_redis_killed_and_restarted(own_redis: RedisProcess) -> None:
    async with await RedisStore.open(own_redis.url) as store:
        lease = await store.acquire_lease("berth-a", 30)
        await store.commit(
            Write(
                put=a_record(version=1),
                hold=PortHold("n", 9000, "one"),
                events=(EVENT,),
                usage=(Usage("k", "m", 1, 5),),
            )
        )
        assert (await store.claim_key("key", "one", fingerprint="f", ttl_s=60)).is_new
        own_redis.kill()
        await until(lambda: store.is_away)

        assert (await store.get("one")) == a_record(version=1)  # serving goes on
        second = await store.commit(
            Write(
                put=a_record(version=2, pid=2),
                expected_version=1,
                events=(EVENT,),
                usage=(Usage("k", "m", 1),),
            )
        )
        assert second.queued
        third = await store.put(a_record(pid=3), 2, events=[EVENT])
        await store.commit(Write(hold=PortHold("n", 9001, "two")))
        await store.put(a_record("gone"), 0)
        await store.delete("gone", 1)
        with pytest.raises(Conflict):
            await store.put(a_record(), 0)
        assert await store.get("one") == third
        assert await store.usage() == [Usage("k", "m", 2, 5)]
        assert not (await store.claim_key("key", "x", fingerprint="f", ttl_s=60)).is_new
        with pytest.raises(StoreUnavailable):
            await store.claim_key("other", "x", fingerprint="f", ttl_s=60)
        with pytest.raises(StoreUnavailable):
            await store.renew_lease()

        own_redis.start()
        await until(lambda: not store.is_away)
        assert [event.event_id for event in await store.events_since(0)] == [1, 2, 3]
        assert await store.records() == [third]
        async with await RedisStore.open(own_redis.url) as other:
            assert await everything(other) == await everything(store)
            assert [hold.port for hold in await other.ports()] == [9000, 9001]
            assert await other.usage() == [Usage("k", "m", 2, 5)]
            claim = await other.claim_key("key", "x", fingerprint="f", ttl_s=60)
            assert (claim.is_new, claim.instance_id) == (False, "one")
            owner = await other.owner_of("one")
            assert owner is not None and owner.is_alive and owner.fence >= lease.fence


async def test_two_nodes_and_a_redis_that_lost_everything(redis_server: RedisProcess) -> None:
    redis_server.flush()
    async with (
        await RedisStore.open(redis_server.url) as one,
        await RedisStore.open(redis_server.url) as two,
    ):
        await one.acquire_lease("berth-a", 30)
        await two.acquire_lease("berth-b", 30)
        await one.put(a_record("one", owner="berth-a"), 0, events=[EVENT])
        await two.put(a_record("two", owner="berth-b"), 0, events=[EVENT])
        await one.add_usage([Usage("k", "m", 1)])
        await two.add_usage([Usage("k", "m", 2)])
        await until(lambda: len(one._sync.mirror.known.records) == 2)
        redis_server.flush()  # no connection breaks
        first = await one.put(a_record("one", owner="berth-a", pid=2), 1, events=[EVENT])
        second = await two.put(a_record("two", owner="berth-b", pid=2), 1, events=[EVENT])
        async with asyncio.timeout(30):
            while not (  # noqa: ASYNC110 - as in `until`
                await one.records() == await two.records() == [first, second]
                and await one.usage() == await two.usage() == [Usage("k", "m", 3)]
                and {owner.owner for owner in await one.owners()} == {"berth-a", "berth-b"}
                and not one.is_away
                and not two.is_away
            ):
                await asyncio.sleep(0.02)


async def test_a_frozen_redis_blocks_no_caller_for_long(own_redis: RedisProcess) -> None:
    async with await RedisStore.open(own_redis.url) as store:
        await store.put(a_record(), 0)
        own_redis.freeze()
        try:
            start = time.monotonic()
            async with asyncio.timeout(20):
                await asyncio.gather(*(store.put(a_record(f"i{n}"), 0, events=[EVENT]) for n in range(10)))
            assert time.monotonic() - start < 10  # one time-out of 2 s, not ten
        finally:
            own_redis.thaw()
        await until(lambda: not store.is_away)
        assert len(await store.records()) == 11
        assert [event.event_id for event in await store.events_since(0)] == list(range(1, 11))


async def test_a_write_whose_reply_is_lost_is_applied_once(relay: Relay, redis_server: RedisProcess) -> None:
    async with await RedisStore.open(relay.url) as store, await RedisStore.open(redis_server.url) as other:
        await store.put(a_record(), 0)
        relay.lose_the_answer_to(b"answer-lost")
        write = Write(
            put=a_record(version=2, status_reason="answer-lost"),
            expected_version=1,
            events=(EVENT,),
            usage=(Usage("k", "m", 1, 7),),
        )
        await store.commit(write)
        await store.put(a_record(pid=3), 2, events=[EVENT])
        await until(lambda: not store.is_away)
        assert await store.get("one") == a_record(version=3, pid=3)
        assert len(await store.events_since(0)) == 2
        assert await other.usage() == [Usage("k", "m", 1, 7)]


async def test_queued_writes_are_written_at_shutdown_if_redis_comes_back_soon(
    relay: Relay, redis_server: RedisProcess
) -> None:
    async with await RedisStore.open(redis_server.url) as other:
        store = await RedisStore.open(relay.url)
        await store.acquire_lease("berth-a", 30)
        relay.cut()
        await until(lambda: store.is_away)
        await store.commit(Write(usage=(Usage("k", "m", 1, 7),)))
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        assert not closing.done()
        relay.mend()
        async with asyncio.timeout(20):
            await closing
        assert await other.usage() == [Usage("k", "m", 1, 7)]
        assert await other.owners() == []


async def test_a_shutdown_does_not_wait_long_for_a_redis_that_stays_away(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("instance_manager.state.stores.redis.LAST_WRITES_S", 0.1)
    store = await RedisStore.open(relay.url)
    relay.cut()
    await until(lambda: store.is_away)
    await store.commit(Write(usage=(Usage("k", "m", 1, 7),)))
    async with asyncio.timeout(20):
        await store.close()
    assert "1 changes are lost" in caplog.text


async def test_a_lease_acquired_during_a_check_does_not_count_as_lost(redis_server: RedisProcess) -> None:
    """The reply to the check is older than the lease: nothing was lost."""
    redis_server.flush()
    async with await RedisStore.open(redis_server.url) as store:
        check = store._sync.link.check

        async def acquired_meanwhile(epoch: str, expected: ExpectedData) -> dict[str, Owner]:
            owners = await check(epoch, expected)
            await store.acquire_lease("berth-a", 30)
            return owners

        store._sync.link.check = acquired_meanwhile  # type: ignore[method-assign]
        try:
            assert await store._sync._check() == {}
        finally:
            store._sync.link.check = check  # type: ignore[method-assign]
        assert not store.is_away


async def test_a_claim_whose_reply_is_lost_is_released(relay: Relay, redis_server: RedisProcess) -> None:
    async with await RedisStore.open(relay.url) as store, await RedisStore.open(redis_server.url) as other:
        await store.claim_key("first", "one", fingerprint="f", ttl_s=60)  # Redis knows the script from now on
        relay.lose_the_answer_to(b"answer-lost")
        with pytest.raises(StoreUnavailable):
            await store.claim_key("key", "answer-lost", fingerprint="f", ttl_s=60)
        await until(lambda: not store.is_away)
        assert (await other.claim_key("key", "x", fingerprint="f", ttl_s=60)).is_new


async def test_a_record_that_another_node_wrote_meanwhile_wins(
    relay: Relay, redis_server: RedisProcess
) -> None:
    async with await RedisStore.open(relay.url) as store, await RedisStore.open(redis_server.url) as other:
        await store.put(a_record(), 0)
        changes = store.watch()
        relay.cut()
        await until(lambda: store.is_away)
        theirs = await other.put(a_record(pid=99), 1)
        await other.put(a_record("new"), 0)
        await store.commit(
            Write(
                put=a_record(version=2, pid=1),
                expected_version=1,
                events=(EVENT,),
                usage=(Usage("k", "m", 1),),
            )
        )
        relay.mend()
        rejected = await next_change(changes, ChangeKind.REJECTED)
        assert (rejected.instance_id, rejected.record) == ("one", theirs)
        assert "version 2, not 1" in rejected.reason
        assert [record.instance_id for record in await store.records()] == ["new", "one"]
        assert len(await other.events_since(0)) == 1 == len(await store.events_since(0))  # it did happen
        assert await other.usage() == [Usage("k", "m", 1)]


async def test_the_queue_is_bounded(relay: Relay) -> None:
    async with await RedisStore.open(relay.url, max_queued=2) as store:
        relay.cut()
        await until(lambda: store.is_away)
        with pytest.raises(TypeError, match="can't be stored"):
            await store.put(a_record(extra={"no": object()}), 0)  # it would block the queue for ever
        await store.append([EVENT])
        first = await store.put(a_record(), 0)
        with pytest.raises(StoreUnavailable, match="2 writes wait"):
            await store.put(replace(first, pid=5), 1)
        assert await store.get("one") == first  # a refused write leaves nothing
        relay.mend()
        await until(lambda: not store.is_away)
        assert await store.records() == [first]


async def test_nodes_see_each_other_join_and_leave(relay: Relay, redis_server: RedisProcess) -> None:
    async with await RedisStore.open(relay.url) as store, await RedisStore.open(redis_server.url) as other:
        changes = other.watch()
        await store.acquire_lease("berth-a", 0.6)
        assert (await next_change(changes, ChangeKind.OWNER_JOINED)).owner == "berth-a"
        record = await store.put(a_record(), 0, events=[EVENT])
        assert (await next_change(changes, ChangeKind.PUT)).record == record
        await asyncio.sleep(1.0)  # longer than the lease: it is renewed
        owner = await other.owner_of("one")
        assert owner is not None and owner.is_alive
        relay.cut()
        assert (await next_change(changes, ChangeKind.OWNER_LOST)).owner == "berth-a"
        owner = await other.owner_of("one")
        assert owner is not None and not owner.is_alive
        relay.mend()
        assert (await next_change(changes, ChangeKind.OWNER_JOINED)).owner == "berth-a"
        await until(lambda: not store.is_away)
        await store.close()
        lost = await next_change(changes, ChangeKind.OWNER_LOST)
        assert (lost.owner, lost.reason) == ("berth-a", "it has ended")


async def test_of_two_processes_with_one_name_the_later_writes(
    relay: Relay, redis_server: RedisProcess
) -> None:
    async with await RedisStore.open(relay.url) as store, await RedisStore.open(redis_server.url) as other:
        lease = await store.acquire_lease("berth-a", 30)
        first = await store.put(a_record(), 0)
        with pytest.raises(StoreInUse, match="another Berth process uses the name 'berth-a'"):
            await other.acquire_lease("berth-a", 30)
        taken = await other.acquire_lease("berth-a", 30, take_over=True)
        assert taken.fence > lease.fence
        with pytest.raises(LeaseLost):
            await store.put(replace(first, pid=1), 1)
        with pytest.raises(LeaseLost):
            await store.renew_lease()
        assert (await other.put(replace(first, pid=2), 1)).version == 2
        await store.release_lease()  # not its own any more
        assert [owner.fence for owner in await other.owners()] == [taken.fence]


async def test_without_redis_there_is_a_clear_error(tmp_path: Path) -> None:
    port = RedisProcess(tmp_path).port  # nothing listens there
    with pytest.raises(StoreUnavailable, match="no Redis answers") as refused:
        await RedisStore.open(f"redis://me:hunter2@127.0.0.1:{port}/0", timeout_s=0.2)
    assert "hunter2" not in str(refused.value)
