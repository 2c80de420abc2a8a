"""Other Berths on the same state, and their instances, as last heard: read at any time, without waiting.

Only a store that several share has any. Their news come by the store's changes, and by a look each second.
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

_LOOK_INTERVAL_S = 1.0
_AVOID_S = 5.0


class Peers:
    """Empty until `run` has heard of somebody."""

    def __init__(self) -> None:
        self._records: dict[str, InstanceRecord] = {}
        self._owners: dict[str, Owner] = {}
        self._by_name: dict[str, list[InstanceRecord]] = {}  # by what clients call the model; those with one
        self._avoided: dict[str, float] = {}  # Berths that could not be reached, until when (monotonic)
        self._turn = itertools.count()
        self._news = asyncio.Event()

    def owner_of(self, instance_id: str) -> Owner | None:
        """Whose the instance is; None where it is nobody else's."""
        record = self._records.get(instance_id)
        return None if record is None else self._owner(record)

    def names_of(self, instance_id: str) -> tuple[str, ...]:
        """What an instance's model is called; nothing for an unknown one."""
        record = self._records.get(instance_id)
        return () if record is None else names_of(record)

    def owner_running(self, model_name: str, need: RunnerKind | None = None) -> Owner | None:
        """A living Berth where the model takes requests now, such as need this; of several each in turn."""
        running = [
            one
            for one in self._by_name.get(model_name, ())
            if one.state is InstanceState.RUNNING and can_serve(_runner_of(one), need)
        ]
        now = time.monotonic()
        return self._one_of(
            [
                owner
                for owner in map(self._owner, running)
                if owner.is_alive and self._avoided.get(owner.owner, now) <= now
            ]
        )

    def owner_having(self, model_name: str, need: RunnerKind | None = None) -> Owner | None:
        """As `owner_running`; else one where it sleeps or starts, and at last one that is away itself."""
        if (found := self.owner_running(model_name, need)) is not None:
            return found
        owners = [self._owner(one) for one in self._by_name.get(model_name, ())]
        return self._one_of([owner for owner in owners if owner.is_alive] or owners)

    def models(self) -> dict[str, InstanceRecord]:
        """What living Berths serve, or will once it has started or woken: by name, one of its instances.

        One that runs is preferred.
        """
        found = {}
        for name, records in self._by_name.items():
            reachable = [one for one in records if self._owner(one).is_alive]
            if reachable:
                found[name] = max(reachable, key=lambda one: one.state is InstanceState.RUNNING)
        return found

    def avoid(self, owner: str) -> None:
        """It could not be reached: for some seconds no model is looked for there if there is another way."""
        self._avoided[owner] = time.monotonic() + _AVOID_S

    def take(self, records: Iterable[InstanceRecord], owners: Iterable[Owner]) -> None:
        """All instances of others, and all Berths, as they are now."""
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
        watching = asyncio.create_task(self._watch(store, own_name), name="news of other Berths")
        try:
            while True:
                self._news.clear()
                try:
                    await self._look(store, own_name)
                except StoreUnavailable as error:
                    logger.debug("other Berths can't be looked for: %s", error)
                except Exception:  # the task's root: what is known stays, and the next look may succeed
                    logger.exception("looking for other Berths failed")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_INTERVAL_S):
                        await self._news.wait()
        finally:
            watching.cancel()
            await asyncio.wait((watching,))

    async def _look(self, store: StateStore, own_name: str) -> None:
        records = [one for one in await store.records() if one.owner != own_name]
        self.take(records, await store.owners() if records else ())

    async def _watch(self, store: StateStore, own_name: str) -> None:
        async for change in store.watch():
            if self._is_news(change, own_name):
                self._news.set()

    def _is_news(self, change: Change, own_name: str) -> bool:
        if change.record is not None:
            return change.record.owner != own_name
        if change.kind is ChangeKind.DELETED:
            return change.instance_id in self._records
        return change.owner not in (None, own_name)

    def _owner(self, record: InstanceRecord) -> Owner:
        """One who has given its lease back is not known any more."""
        return self._owners.get(record.owner) or Owner(record.owner, 0, 0.0)

    def _one_of(self, owners: list[Owner]) -> Owner | None:
        return owners[next(self._turn) % len(owners)] if owners else None


def names_of(record: InstanceRecord) -> tuple[str, ...]:
    """What clients may call an instance's model, the model's own name first."""
    told = record.extra.get("names")
    if isinstance(told, list) and told:
        return tuple(map(str, told))
    if record.spec.profile is not None:
        return (record.spec.profile,)
    return tuple(dict.fromkeys((record.served_model_name, record.model_name)))


def _runner_of(record: InstanceRecord) -> RunnerKind | None:
    runner = record.extra.get("runner")
    return RunnerKind(runner) if runner in tuple(RunnerKind) else None
