"""Redis is up, but some of our data in it is missing, foreign or garbage: it is restored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from instance_manager.state.stores import NewEvent, PortHold, Usage, Write
from instance_manager.state.stores.errors import LeaseLost, StoreUnavailable
from instance_manager.state.stores.redis import RedisStore
from instance_manager.state.stores.redis_scripts import MEND_KEYS
from tests.instance_manager.stores.conftest import a_record, needs_redis
from tests.instance_manager.stores.redis_process import RedisProcess
from tests.instance_manager.stores.test_redis_away import until

pytestmark = needs_redis

EVENT = NewEvent("instance.state", "one", 1.0, {"n": 1})
MINE = a_record("one", owner="berth-a", version=1)
THEIRS = a_record("two", owner="berth-b", version=1)

# Commands of other clients.
LOSSES: list[list[str]] = [
    ["FLUSHALL"],
    ["FLUSHDB"],
    ["HDEL", "{berth}:leases", "berth-a"],
    ["HSET", "{berth}:leases", "berth-a", "garbage"],
    ["HSET", "{berth}:leases", "berth-a", "[]"],
    ["HSET", "{berth}:leases", "berth-a", '{"session":"x","fence":9,"expires":5}'],  # another node's, expired
    ["HSET", "{berth}:leases", "garbage", "garbage"],
    ["HDEL", "{berth}:records", "one"],
    ["HSET", "{berth}:records", "one", "{"],
    ["HDEL", "{berth}:versions", "one"],
    ["HSET", "{berth}:versions", "one", "x"],
    ["HSET", "{berth}:counters", "change", "x", "event", "y", "fence", "z"],
    ["HDEL", "{berth}:counters", "event", "change", "fence"],
    ["HSET", "{berth}:ports", "garbage", "garbage"],
    ["HSET", "{berth}:usage", "garbage", "garbage"],
    ["XADD", "{berth}:changes", "*", "garbage", "garbage"],
    ["XADD", "{berth}:changes", "*", "n", "3", "w", "{"],
    ["SET", "{berth}:epoch", "another"],
    *(["DEL", f"{{berth}}:{key}"] for key in MEND_KEYS),
    *(["RENAME", f"{{berth}}:{key}", "elsewhere"] for key in ("records", "leases")),
]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instance_manager.state.stores.redis_sync.TICK_S", 0.05)


@pytest.fixture
def redis(redis_server: RedisProcess) -> Iterator[Redis]:
    redis_server.flush()
    with Redis(port=redis_server.port, decode_responses=True) as client:
        yield client


async def fill(one: RedisStore, two: RedisStore) -> None:
    for store, record, port in ((one, MINE, 9000), (two, THEIRS, 9001)):
        await store.acquire_lease(record.owner, 30)
        await store.commit(
            Write(
                put=record,
                hold=PortHold("n", port, record.instance_id),
                events=(EVENT, EVENT),
                usage=(Usage("k", "m", 1, 5),),
            )
        )
    await one.claim_key("key", "one", fingerprint="f", ttl_s=60)
    await until(lambda: all(len(store._sync.mirror.known.records) == 2 for store in (one, two)))


async def settled(*stores: RedisStore) -> None:
    """All are synchronised, each with its lease, and nothing more happens."""

    def position() -> list[object]:
        return [(store._sync.is_up, store._sync.mirror.known, store._sync._last_change) for store in stores]

    async with asyncio.timeout(30):
        before: list[object] = []
        while not all(store._sync.is_up for store in stores) or before != position():
            before = position()
            await asyncio.sleep(0.25)


@pytest.mark.parametrize("words", LOSSES, ids=" ".join)
async def test_lost_data_is_restored(
    words: list[str], redis: Redis, redis_server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        await RedisStore.open(redis_server.url) as one,
        await RedisStore.open(redis_server.url) as two,
    ):
        await fill(one, two)
        with caplog.at_level(logging.DEBUG, "berth.state"):
            redis.execute_command(*words)  # type: ignore[no-untyped-call]
            await settled(one, two)
            assert {owner.owner for owner in await one.owners() if owner.is_alive} == {"berth-a", "berth-b"}
            mine = await one.put(replace(MINE, pid=2), 1, events=[EVENT])
            theirs = await two.put(replace(THEIRS, pid=2), 1)
            await settled(one, two)
        async with await RedisStore.open(redis_server.url) as other:
            assert await other.records() == [mine, theirs]
            assert [hold.port for hold in await other.ports() if hold.port] == [9000, 9001]
            assert await other.usage() == [Usage("k", "m", 2, 10)]
            assert [event.event_id for event in await other.events_since(0)] == [1, 2, 3, 4, 5]
            assert not (await other.claim_key("key", "x", fingerprint="f", ttl_s=60)).is_new
        assert await one.records() == await two.records() == [mine, theirs]
    assert not [record for record in caplog.records if record.exc_info], "a traceback"
    assert len(caplog.records) < 20


@pytest.mark.parametrize("key", MEND_KEYS)
async def test_a_foreign_value_is_renamed_and_kept(
    key: str, redis: Redis, redis_server: RedisProcess
) -> None:
    """Another program writes a value of another type under one of our keys."""
    async with (
        await RedisStore.open(redis_server.url) as one,
        await RedisStore.open(redis_server.url) as two,
    ):
        await fill(one, two)
        redis.delete(f"{{berth}}:{key}")
        redis.rpush(f"{{berth}}:{key}", "theirs")
        await settled(one, two)
        mine = await one.put(replace(MINE, pid=2), 1, events=[EVENT])
        async with await RedisStore.open(redis_server.url) as other:
            assert await other.records() == [mine, THEIRS]
            assert {owner.owner for owner in await other.owners()} == {"berth-a", "berth-b"}
        (aside,) = redis.keys(f"{{berth}}:{key}:aside-*")
        assert redis.lrange(aside, 0, -1) == ["theirs"]


async def test_a_write_finds_the_lease_gone_before_a_check_does(
    redis: Redis, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instance_manager.state.stores.redis_sync.TICK_S", 0.6)
    async with (
        await RedisStore.open(redis_server.url) as one,
        await RedisStore.open(redis_server.url) as two,
    ):
        await fill(one, two)
        redis.delete("{berth}:leases")
        first = await one.commit(Write(put=replace(MINE, version=2), expected_version=1))
        assert first.queued
        await until(lambda: one._sync.is_up)
        redis.delete("{berth}:leases")
        with suppress(StoreUnavailable):  # acquired again; other losses are searched first
            await one.renew_lease()
        await until(lambda: one._sync.is_up)
        assert (await one.renew_lease()).owner == "berth-a"
        redis.delete("{berth}:versions")
        await until(lambda: one._sync.is_up)
        await one.put(replace(MINE, pid=9), 2)
        await until(lambda: one._sync.is_up)
        assert redis.hget("{berth}:versions", "one") == "3"


async def test_only_another_live_process_deposes(redis: Redis, redis_server: RedisProcess) -> None:
    async with (
        await RedisStore.open(redis_server.url) as one,
        await RedisStore.open(redis_server.url) as two,
    ):
        await fill(one, two)
        async with await RedisStore.open(redis_server.url) as usurper:
            await usurper.acquire_lease("berth-a", 30, take_over=True)
            with pytest.raises(LeaseLost):
                await one.put(replace(MINE, pid=2), 1)
            await settled(two, usurper)


async def test_a_changed_password_is_logged_once(
    redis: Redis, redis_server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with await RedisStore.open(redis_server.url) as store:
        await store.acquire_lease("berth-a", 30)
        record = await store.put(MINE, 0)
        caplog.set_level(logging.DEBUG, "berth.state")
        redis.config_set("requirepass", "another")
        try:
            redis.execute_command(  # type: ignore[no-untyped-call]
                "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"
            )
            await until(lambda: store.is_away)
            record = await store.put(replace(record, pid=5), 1)
            await asyncio.sleep(0.3)
        finally:
            redis.config_set("requirepass", "")
        await until(lambda: not store.is_away)
        await settled(store)
        assert redis.hget("{berth}:versions", "one") == "2"
        away = [one.getMessage() for one in caplog.records if "is away" in one.getMessage()]
        assert len(away) <= 2 and not [one for one in caplog.records if one.exc_info]


async def test_a_redis_that_evicts_keys_is_survived(redis: Redis, redis_server: RedisProcess) -> None:
    async with (
        await RedisStore.open(redis_server.url) as one,
        await RedisStore.open(redis_server.url) as two,
    ):
        await fill(one, two)
        redis.config_set("maxmemory-policy", "allkeys-random")
        redis.config_set("maxmemory", "1mb")
        try:
            for number in range(30):
                with suppress(OutOfMemoryError):
                    redis.set(f"filler-{number}", "x" * 50_000)
        finally:
            redis.config_set("maxmemory", "0")
            redis.config_set("maxmemory-policy", "noeviction")
        await settled(one, two)
        mine = await one.put(replace(MINE, pid=2), 1)
        async with await RedisStore.open(redis_server.url) as other:
            assert await other.records() == [mine, THEIRS]
