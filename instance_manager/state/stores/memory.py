"""`memory://`: lost when Berth ends. For tests, and for running without state on disk."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable

from instance_manager.broadcast.ring import BroadcastRing
from instance_manager.state.stores.base import DEFAULT_HISTORY
from instance_manager.state.stores.records import (
    Change,
    ChangeKind,
    Claim,
    Commit,
    InstanceRecord,
    OwnerLease,
    PortHold,
    Usage,
    Write,
)
from instance_manager.state.stores.sole_owner import SoleOwnerStore
from instance_manager.state.stores.tables import Tables
from instance_manager.types import Event

CHANGES_KEPT = 1000  # for slow readers of `watch`


def change_of(write: Write, commit: Commit) -> Change | None:
    """What `watch` reports about a write; None for ports and usage, which have no watchers."""
    if write.put is not None:
        return Change(ChangeKind.PUT, write.put.instance_id, write.put, commit.events)
    if write.delete is not None:
        return Change(ChangeKind.DELETED, write.delete, events=commit.events)
    return Change(ChangeKind.EVENTS, events=commit.events) if commit.events else None


class MemoryStore(SoleOwnerStore):
    """Everything in this process. `clock` returns seconds, for the expiry of idempotency keys."""

    def __init__(
        self, *, history: int = DEFAULT_HISTORY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tables = Tables(history)
        self._keys: dict[str, tuple[Claim, float]] = {}  # key -> the claim and when it expires
        self._clock = clock
        self._fence = 0
        self._lease: OwnerLease | None = None
        self._changes: BroadcastRing[Change] = BroadcastRing(CHANGES_KEPT)

    async def commit(self, write: Write) -> Commit:
        commit = self._tables.apply(write)
        change = change_of(write, commit)
        if change is not None:
            self._changes.extend((change,))
        return commit

    async def get(self, instance_id: str) -> InstanceRecord | None:
        return self._tables.records.get(instance_id)

    async def records(self) -> list[InstanceRecord]:
        return [record for _, record in sorted(self._tables.records.items())]

    async def events_since(self, event_id: int, limit: int = 1000) -> list[Event]:
        return self._tables.events_since(event_id, limit)

    async def last_event_id(self) -> int:
        return self._tables.last_event_id

    async def ports(self) -> list[PortHold]:
        return self._tables.port_holds()

    async def usage(self) -> list[Usage]:
        return self._tables.usage_totals()

    async def claim_key(self, key: str, instance_id: str, *, fingerprint: str, ttl_s: float) -> Claim:
        now = self._clock()
        self._keys = {name: held for name, held in self._keys.items() if held[1] > now}
        if key in self._keys:
            return self._keys[key][0]
        self._keys[key] = (Claim(key, instance_id, fingerprint, False), now + ttl_s)
        return Claim(key, instance_id, fingerprint, True)

    async def forget_key(self, key: str, instance_id: str) -> None:
        if key in self._keys and self._keys[key][0].instance_id == instance_id:
            del self._keys[key]

    async def acquire_lease(
        self, owner: str, ttl_s: float, *, take_over: bool = False, url: str = ""
    ) -> OwnerLease:
        self._fence += 1
        self._lease = OwnerLease(owner, secrets.token_hex(8), self._fence, math.inf, url)
        self._changes.extend((Change(ChangeKind.OWNER_JOINED, owner=owner),))
        return self._lease

    async def close(self) -> None:
        await self.release_lease()
        self._changes.close()
