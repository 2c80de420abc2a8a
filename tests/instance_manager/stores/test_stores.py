"""What every store promises, checked for all three."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from instance_manager.state.stores import (
    Change,
    ChangeKind,
    InstanceRecord,
    NewEvent,
    PortHold,
    StateStore,
    Usage,
    Write,
    open_store,
)
from instance_manager.state.stores.errors import Conflict, InvalidStateUrl, PortHeld, StoreUnavailable
from instance_manager.state.stores.records import MAX_COUNT
from instance_manager.state.usage import UsageMeter
from instance_manager.types import ExpireAction, InstanceSpec, InstanceState
from tests.instance_manager.stores.conftest import a_record


def an_event(instance_id: str = "one", number: int = 0) -> NewEvent:
    return NewEvent("instance.state", instance_id, 1_790_000_000.5, {"number": number, "list": [], "x": None})


async def test_a_record_comes_back_as_it_went_in(store: StateStore) -> None:
    record = a_record(
        spec=InstanceSpec(
            "m",
            "command",
            params={"a": {"b": [1, 2.5, True, None]}, "surrogate": "\ud800"},
            env={"HF_TOKEN": "secret"},
            devices=["0"],
            command=["serve", "{port}"],
            expire_action=ExpireAction.SLEEP1,
        ),
        timeout_s=float("inf"),
    )
    stored = await store.put(record, 0)
    assert stored.version == 1
    found = await store.get("one")
    assert found is not None
    assert found.spec.expire_action is ExpireAction.SLEEP1
    assert found.state is InstanceState.RUNNING
    assert found.to_json() == stored.to_json()
    assert await store.records() == [found]
    assert await store.get("two") is None


def test_a_record_survives_json_and_unknown_fields_and_hides_its_secrets() -> None:
    record = a_record()
    assert InstanceRecord.from_json(record.to_json()) == record
    assert InstanceRecord.from_json(record.to_json().replace("{", '{"of_a_newer_berth":1,', 1)) == record
    assert "secret" in record.to_json()
    assert "secret" not in repr(record)


async def test_a_write_must_expect_the_current_version(store: StateStore) -> None:
    first = await store.put(a_record(), 0)
    with pytest.raises(Conflict) as conflict:
        await store.put(a_record(pid=1), 0, events=[an_event()])
    assert (conflict.value.expected, conflict.value.found) == (0, 1)
    second = await store.put(a_record(pid=2), first.version)
    with pytest.raises(Conflict):
        await store.put(a_record(pid=3), first.version)
    with pytest.raises(Conflict):
        await store.delete("one", first.version)
    assert await store.get("one") == second
    assert await store.last_event_id() == 0  # a write that fails leaves nothing
    await store.delete("one", second.version)
    assert await store.get("one") is None
    with pytest.raises(Conflict):
        await store.delete("one", second.version)


async def test_of_concurrent_writers_one_wins(store: StateStore) -> None:
    outcomes = await asyncio.gather(
        *(store.put(a_record(pid=pid), 0) for pid in range(20)), return_exceptions=True
    )
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(won) == 1
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome not in won)
    assert await store.get("one") == won[0]


async def test_events_are_numbered_and_the_oldest_dropped(store: StateStore) -> None:
    await store.put(a_record(), 0, events=[an_event(number=1), an_event(number=2)])
    more = await store.append([an_event("two", number) for number in range(3, 31)])
    assert [event.event_id for event in more] == list(range(3, 31))
    kept = await store.events_since(0)
    assert [event.event_id for event in kept] == list(range(11, 31))  # the store keeps 20
    assert kept[-1] == more[-1]
    assert [event.event_id for event in await store.events_since(25, limit=2)] == [26, 27]
    assert await store.events_since(30) == []
    assert await store.last_event_id() == 30


async def test_events_keep_their_published_ids(store: StateStore) -> None:
    now = 1_764_444_444_444
    await store.append([an_event(number=1), an_event(number=2)])
    stored = await store.commit(Write(events=(an_event(number=3), an_event(number=4)), first_event_id=now))
    assert [event.event_id for event in stored.events] == [now, now + 1]
    late = await store.commit(Write(events=(an_event(number=5),), first_event_id=now - 5))  # another's
    assert [event.event_id for event in late.events] == [now + 2]
    await store.append([an_event(number=number) for number in range(6, 22)])
    kept = await store.events_since(0)
    assert [event.event_id for event in kept] == [2, *range(now, now + 19)]  # 20 of them
    assert kept[1:3] == list(stored.events)
    assert await store.last_event_id() == now + 18


async def test_concurrent_events_are_numbered_without_gaps(store: StateStore) -> None:
    await asyncio.gather(*(store.append([an_event(number=n), an_event(number=n)]) for n in range(10)))
    events = await store.events_since(0)
    assert [event.event_id for event in events] == list(range(1, 21))
    pairs = [(events[place].data, events[place + 1].data) for place in range(0, 20, 2)]
    assert all(one == other for one, other in pairs)  # what is written at once stays together


async def test_a_port_belongs_to_one_instance_of_a_machine(store: StateStore) -> None:
    hold = PortHold("node", 9000, "one")
    await store.commit(Write(hold=hold))
    await store.commit(Write(hold=hold))
    with pytest.raises(PortHeld) as refused:
        await store.commit(Write(hold=PortHold("node", 9000, "two")))
    assert refused.value.holder == "one"
    await store.commit(Write(hold=PortHold("elsewhere", 9000, "two")))
    await store.release_port(PortHold("node", 9000, "two"))  # not its own
    assert await store.ports() == [PortHold("elsewhere", 9000, "two"), hold]
    await store.release_port(hold)
    await store.commit(Write(hold=PortHold("node", 9000, "three")))


async def test_a_record_its_port_and_its_event_are_written_atomically(store: StateStore) -> None:
    await store.commit(Write(hold=PortHold("node", 9000, "two")))
    write = Write(
        put=a_record(version=1),
        hold=PortHold("node", 9000, "one"),
        events=(an_event(),),
        usage=(Usage("k", "m", 1),),
    )
    with pytest.raises(PortHeld):
        await store.commit(write)
    assert (await store.records(), await store.last_event_id(), await store.usage()) == ([], 0, [])
    await store.release_port(PortHold("node", 9000, "two"))
    commit = await store.commit(write)
    assert [event.event_id for event in commit.events] == [1]
    await store.delete("one", 1)
    assert await store.ports() == []  # goes with its instance


async def test_an_idempotency_key_belongs_to_the_first(store: StateStore) -> None:
    claims = await asyncio.gather(
        *(store.claim_key("key", f"i{n}", fingerprint=f"f{n}", ttl_s=60) for n in range(10))
    )
    winners = [claim for claim in claims if claim.is_new]
    assert len(winners) == 1
    assert {(claim.instance_id, claim.fingerprint) for claim in claims} == {
        (winners[0].instance_id, winners[0].fingerprint)
    }
    await store.forget_key("key", "another")
    assert not (await store.claim_key("key", "x", fingerprint="f", ttl_s=60)).is_new
    await store.forget_key("key", winners[0].instance_id)
    assert (await store.claim_key("key", "x", fingerprint="f", ttl_s=60)).is_new


async def test_an_idempotency_key_expires(store: StateStore) -> None:
    start = time.monotonic()
    assert (await store.claim_key("key", "one", fingerprint="f", ttl_s=0.3)).is_new
    while not (await store.claim_key("key", "two", fingerprint="f", ttl_s=60)).is_new:
        assert time.monotonic() - start < 30
        await asyncio.sleep(0.02)
    assert time.monotonic() - start >= 0.29


async def test_absurd_usage_stays_a_number(store: StateStore) -> None:
    """Whatever an engine reports, other usage is still counted."""
    meter = UsageMeter()
    for _ in range(3):
        for _ in range(2):
            meter.add("k", "m", 1, 2**62, 2**70)
        meter.add("other", "m", 1, 5, 5)
        await meter.flush(store)
    for totals in (await store.usage(), await meter.totals(store)):
        hostile, other = totals
        assert (hostile.requests, other) == (6, Usage("other", "m", 3, 15, 15))
        assert hostile.prompt_tokens >= hostile.completion_tokens == MAX_COUNT


async def test_usage_adds_up(store: StateStore) -> None:
    await asyncio.gather(
        *(store.add_usage([Usage("k", "m", 1, 10, 5), Usage("j", "m", 1)]) for _ in range(20))
    )
    await store.add_usage([Usage("k", "a", 1, 2**40, 1)])
    assert await store.usage() == [
        Usage("j", "m", 20),
        Usage("k", "a", 1, 2**40, 1),
        Usage("k", "m", 20, 200, 100),
    ]


async def test_watch_reports_commits(store: StateStore) -> None:
    changes = store.watch()
    record = await store.put(a_record(), 0, events=[an_event()])
    await store.append([an_event("two")])
    await store.add_usage([Usage("k", "m", 1)])
    await store.delete("one", 1)
    seen: list[Change] = []
    async with asyncio.timeout(30):
        async for change in changes:
            seen.append(change)
            if change.kind is ChangeKind.DELETED:
                break
    assert [change.kind for change in seen] == [ChangeKind.PUT, ChangeKind.EVENTS, ChangeKind.DELETED]
    assert seen[0].record == record
    assert [event.event_id for change in seen for event in change.events] == [1, 2]
    await store.close()
    async with asyncio.timeout(30):
        assert [change async for change in store.watch()] == []


async def test_an_owner_is_alive_while_it_holds_its_lease(store: StateStore) -> None:
    changes = store.watch()
    with pytest.raises(RuntimeError):
        await store.renew_lease()
    await store.put(a_record(), 0)
    owner = await store.owner_of("one")
    assert owner is not None and not owner.is_alive
    lease = await store.acquire_lease("berth-a", 30)
    assert await store.renew_lease() == lease
    await store.put(a_record(), 1)
    owner = await store.owner_of("one")
    assert owner is not None and owner.is_alive and owner.fence == lease.fence
    assert await store.owner_of("two") is None
    await store.release_lease()
    await store.release_lease()
    assert await store.owners() == []
    assert (await store.acquire_lease("berth-a", 30)).fence > lease.fence
    kinds = []
    async with asyncio.timeout(30):
        async for change in changes:
            kinds.append(change.kind)
            if kinds.count(ChangeKind.OWNER_JOINED) == 2:
                break
    put, joined, lost = ChangeKind.PUT, ChangeKind.OWNER_JOINED, ChangeKind.OWNER_LOST
    assert kinds == [put, joined, put, lost, joined]


async def test_it_may_be_closed_twice_and_is_then_unusable(store: StateStore, state_url: str) -> None:
    await store.close()
    await store.close()
    if state_url != "memory://":
        with pytest.raises(StoreUnavailable):
            await store.records()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "berth.db",
        "postgres://x",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/x.db",
        "redis://host:port",
        "[",
    ],
)
async def test_a_wrong_url_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidStateUrl, match="STATE_URL"):
        await open_store(url, tmp_path)
