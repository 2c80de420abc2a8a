"""Any sequence of calls gives the same results from each store as from plain dictionaries."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from instance_manager.state.stores import (
    InstanceRecord,
    NewEvent,
    PortHold,
    StateStore,
    Usage,
    Write,
    open_store,
)
from instance_manager.state.stores.errors import StoreError
from tests.instance_manager.stores.conftest import a_record

HISTORY = 5

ids = st.sampled_from(["a", "b", "ü"])
events = st.lists(ids, max_size=3)
versions = st.integers(0, 4)
holds = st.tuples(st.sampled_from([9000, 9001]), ids)
texts = st.text(max_size=10)
operations = st.one_of(
    st.tuples(st.just("put"), ids, versions, events, st.none() | holds, texts),
    st.tuples(st.just("delete"), ids, versions, events),
    st.tuples(st.just("append"), events),
    st.tuples(st.just("hold"), holds),
    st.tuples(st.just("release"), holds),
    st.tuples(st.just("use"), ids, st.integers(0, 2**53)),
    st.tuples(st.just("claim"), ids, ids),
    st.tuples(st.just("forget"), ids, ids),
)


def new_events(names: list[str]) -> tuple[NewEvent, ...]:
    return tuple(NewEvent("x", name, 1.5, {"of": name}) for name in names)


class Model:
    """What the stores should do, as simply as possible."""

    def __init__(self) -> None:
        self.records: dict[str, InstanceRecord] = {}
        self.ports: dict[int, str] = {}
        self.usage: dict[str, tuple[int, int]] = {}
        self.claims: dict[str, str] = {}
        self.events: list[str] = []  # all of them, in order

    def do(self, name: str, *args: Any) -> object:
        return getattr(self, name)(*args)

    def put(self, i: str, version: int, names: list[str], hold: tuple[int, str] | None, text: str) -> str:
        if self.version(i) != version:
            return f"version_conflict {self.version(i)}"
        if hold is not None and self.ports.get(hold[0], hold[1]) != hold[1]:
            return "port_held"
        if hold is not None:
            self.ports[hold[0]] = hold[1]
        self.records[i] = a_record(i, version=version + 1, status_reason=text)
        return self.append(names)

    def delete(self, i: str, version: int, names: list[str]) -> str:
        if self.version(i) != version:
            return f"version_conflict {self.version(i)}"
        self.records.pop(i, None)
        self.ports = {port: holder for port, holder in self.ports.items() if holder != i}
        return self.append(names)

    def append(self, names: list[str]) -> str:
        self.events += names
        return "done"

    def hold(self, hold: tuple[int, str]) -> str:
        return "done" if self.ports.setdefault(*hold) == hold[1] else "port_held"

    def release(self, hold: tuple[int, str]) -> str:
        if self.ports.get(hold[0]) == hold[1]:
            del self.ports[hold[0]]
        return "done"

    def use(self, key: str, tokens: int) -> str:
        requests, before = self.usage.get(key, (0, 0))
        self.usage[key] = (requests + 1, before + tokens)
        return "done"

    def claim(self, key: str, i: str) -> tuple[str, bool]:
        return (self.claims[key], False) if key in self.claims else (self.claims.setdefault(key, i), True)

    def forget(self, key: str, i: str) -> str:
        if self.claims.get(key) == i:
            del self.claims[key]
        return "done"

    def version(self, i: str) -> int:
        return self.records[i].version if i in self.records else 0


async def do(store: StateStore, name: str, *args: Any) -> object:
    """The same operation on a store; its result in the model's form."""
    try:
        match name, args:
            case "put", (i, version, names, hold, text):
                record = a_record(i, version=version + 1, status_reason=text)
                port = None if hold is None else PortHold("n", *hold)
                await store.commit(
                    Write(put=record, expected_version=version, events=new_events(names), hold=port)
                )
            case "delete", (i, version, names):
                await store.delete(i, version, events=new_events(names))
            case "append", (names,):
                await store.append(new_events(names))
            case "hold", (hold,):
                await store.commit(Write(hold=PortHold("n", *hold)))
            case "release", (hold,):
                await store.release_port(PortHold("n", *hold))
            case "use", (key, tokens):
                await store.add_usage([Usage(key, "m", 1, tokens)])
            case "claim", (key, i):
                claim = await store.claim_key(key, i, fingerprint="f", ttl_s=3600)
                return claim.instance_id, claim.is_new
            case "forget", (key, i):
                await store.forget_key(key, i)
    except StoreError as error:
        found = getattr(error, "found", None)
        return error.code if found is None else f"{error.code} {found}"
    return "done"


async def check(store: StateStore, model: Model) -> None:
    assert await store.records() == [model.records[i] for i in sorted(model.records)]
    assert await store.ports() == [PortHold("n", port, i) for port, i in sorted(model.ports.items())]
    assert await store.usage() == [Usage(key, "m", *model.usage[key]) for key in sorted(model.usage)]
    last = len(model.events)
    assert await store.last_event_id() == last
    kept = [event.numbered(number) for number, event in enumerate(new_events(model.events), start=1)][
        -HISTORY:
    ]
    assert await store.events_since(0) == kept
    assert await store.events_since(last - 2, limit=1) == [e for e in kept if e.event_id > last - 2][:1]


def test_the_stores_do_what_the_model_does(state_url: str, tmp_path: Path) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.lists(operations, max_size=25))
    def run(steps: list[tuple[Any, ...]]) -> None:
        asyncio.run(compare(steps))

    async def compare(steps: list[tuple[Any, ...]]) -> None:
        name = secrets.token_hex(4)
        url = state_url.replace("berth.db", f"{name}.db")
        url += f"?prefix={name}" if url.startswith("redis") else ""
        model = Model()
        async with await open_store(url, tmp_path, history=HISTORY) as store:
            for step in steps:
                assert await do(store, *step) == model.do(*step), step
            await check(store, model)
        if not url.startswith("memory"):
            async with await open_store(url, tmp_path, history=HISTORY) as again:
                await check(again, model)

    run()


def test_the_model_detects_a_faulty_store() -> None:
    async def compare() -> None:
        model = Model()
        async with await open_store("memory://", Path(), history=HISTORY) as store:
            model.records["a"] = replace(a_record("a"), version=1)
            try:
                await check(store, model)
            except AssertionError:
                return
            raise RuntimeError("not noticed")

    asyncio.run(compare())
