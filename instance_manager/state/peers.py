"""Other nodes on the same state and their instances, as last seen: read at any time, without waiting.

Only a shared store has peers. Updates come from the store's changes, and from a poll every second.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from instance_manager.backends.runner_kind import RunnerKind, can_serve
from instance_manager.state.stores.base import StateStore
from instance_manager.state.stores.errors import StoreUnavailable
from instance_manager.state.stores.records import Change, ChangeKind, InstanceRecord, Owner
from instance_manager.types import InstanceState

logger = logging.getLogger("berth.state")

_POLL_INTERVAL_S = 1.0
_AVOID_S = 5.0


class Peers:
    """Empty until `run` has seen a peer."""

    def __init__(self) -> None:
        self._records: dict[str, InstanceRecord] = {}
        self._owners: dict[str, Owner] = {}
        self._by_name: dict[str, list[InstanceRecord]] = {}  # by model name, of instances that have a process
        self._avoided: dict[str, float] = {}  # unreachable nodes, until when (monotonic seconds)
        self._turn = itertools.count()
        self._changed = asyncio.Event()

    def owner_of(self, instance_id: str) -> Owner | None:
        """The peer that owns the instance; None if none does."""
        record = self._records.get(instance_id)
        return None if record is None else self._owner(record)

    def names_of(self, instance_id: str) -> tuple[str, ...]:
        """The names of an instance's model; none for an unknown instance."""
        record = self._records.get(instance_id)
        return () if record is None else names_of(record)

    def owner_running(self, model_name: str, need: RunnerKind | None = None) -> Owner | None:
        """A live node where the model accepts requests with this need now; several take turns."""
        running = [
            one
            for one in self._by_name.get(model_name, ())
            if one.state is InstanceState.RUNNING and can_serve(_runner_of(one), need)
        ]
        now = time.monotonic()
        return self._next_of(
            [
                owner
                for owner in map(self._owner, running)
                if owner.is_alive and self._avoided.get(owner.owner, now) <= now
            ]
        )

    def owner_having(self, model_name: str, need: RunnerKind | None = None) -> Owner | None:
        """As `owner_running`; else a node where it sleeps or starts, and failing that one that is away."""
        if (found := self.owner_running(model_name, need)) is not None:
            return found
        owners = [self._owner(one) for one in self._by_name.get(model_name, ())]
        return self._next_of([owner for owner in owners if owner.is_alive] or owners)

    def models(self) -> dict[str, InstanceRecord]:
        """Models that live nodes serve, or will once started or woken: by name, one instance each.

        Running instances are preferred.
        """
        found = {}
        for name, records in self._by_name.items():
            reachable = [one for one in records if self._owner(one).is_alive]
            if reachable:
                found[name] = max(reachable, key=lambda one: one.state is InstanceState.RUNNING)
        return found

    def avoid(self, owner: str) -> None:
        """The node could not be reached: for some seconds, requests prefer other nodes."""
        self._avoided[owner] = time.monotonic() + _AVOID_S

    def replace(self, records: Iterable[InstanceRecord], owners: Iterable[Owner]) -> None:
        """Set the instances of all peers and the nodes themselves."""
        self._records = {one.instance_id: one for one in records}
        self._owners = {one.owner: one for one in owners}
        self._avoided = {name: until for name, until in self._avoided.items() if name in self._owners}
        self._by_name = {}
        for one in self._records.values():
            if not one.state.is_terminal:
                for name in names_of(one):
                    self._by_name.setdefault(name, []).append(one)

    async def run(self, store: StateStore, own_name: str) -> None:
        """Follow the store until cancelled or until it is closed."""
        watching = asyncio.create_task(self._watch(store, own_name), name="changes of peers")
        try:
            while True:
                self._changed.clear()
                try:
                    await self._poll(store, own_name)
                except StoreUnavailable as error:
                    logger.debug("peers can't be read: %s", error)
                except Exception:  # the task's root: what is known stays, and the next poll may succeed
                    logger.exception("reading peers failed")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_INTERVAL_S):
                        await self._changed.wait()
        finally:
            watching.cancel()
            await asyncio.wait((watching,))

    async def _poll(self, store: StateStore, own_name: str) -> None:
        records = [one for one in await store.records() if one.owner != own_name]
        self.replace(records, await store.owners() if records else ())

    async def _watch(self, store: StateStore, own_name: str) -> None:
        async for change in store.watch():
            if self._is_of_peer(change, own_name):
                self._changed.set()

    def _is_of_peer(self, change: Change, own_name: str) -> bool:
        if change.record is not None:
            return change.record.owner != own_name
        if change.kind is ChangeKind.DELETED:
            return change.instance_id in self._records
        return change.owner not in (None, own_name)

    def _owner(self, record: InstanceRecord) -> Owner:
        """The record's node; one that has released its lease is no longer listed."""
        return self._owners.get(record.owner) or Owner(record.owner, 0, 0.0)

    def _next_of(self, owners: list[Owner]) -> Owner | None:
        return owners[next(self._turn) % len(owners)] if owners else None


def names_of(record: InstanceRecord) -> tuple[str, ...]:
    """The names of an instance's model that clients can use, its own name first."""
    names = record.extra.get("names")
    if isinstance(names, list) and names:
        return tuple(map(str, names))
    if record.spec.profile is not None:
        return (record.spec.profile,)
    return tuple(dict.fromkeys((record.served_model_name, record.model_name)))


def is_unlisted(record: InstanceRecord) -> bool:
    """Whether its model is in no list for clients."""
    return record.extra.get("unlisted") is True


def _runner_of(record: InstanceRecord) -> RunnerKind | None:
    runner = record.extra.get("runner")
    return RunnerKind(runner) if runner in tuple(RunnerKind) else None
