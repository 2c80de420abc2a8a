"""Common to stores with a single process: a lease that never expires, and changes of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

from instance_manager.broadcast.ring import BroadcastRing
from instance_manager.state.stores.base import StateStore
from instance_manager.state.stores.records import Change, ChangeKind, Owner, OwnerLease


class SoleOwnerStore(StateStore):
    """`acquire_lease` and the tables are left to the store."""

    _lease: OwnerLease | None
    _changes: BroadcastRing[Change]

    async def renew_lease(self) -> OwnerLease:
        if self._lease is None:
            raise RuntimeError("there is no lease to renew")
        return self._lease

    async def release_lease(self) -> None:
        if self._lease is not None:
            self._changes.extend((Change(ChangeKind.OWNER_LOST, owner=self._lease.owner),))
            self._lease = None

    async def owners(self) -> list[Owner]:
        lease = self._lease
        return [] if lease is None else [Owner(lease.owner, lease.fence, lease.ttl_s, lease.url)]

    def watch(self) -> AsyncIterator[Change]:
        return self._changes.follow(self._changes.last_number)

    @property
    def is_away(self) -> bool:
        return False
