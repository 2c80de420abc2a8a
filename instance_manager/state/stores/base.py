"""The interface of a state store: what the manager can rely on, whichever store is behind it.

A store keeps data that must outlive a Berth process; it decides nothing. All methods may be called from many
tasks of the event loop that opened the store, and none blocks it. Every method may raise StoreUnavailable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Self

from instance_manager.state.stores.records import (
    Change,
    Claim,
    Commit,
    InstanceRecord,
    NewEvent,
    Owner,
    OwnerLease,
    PortHold,
    Usage,
    Write,
)
from instance_manager.types import Event

DEFAULT_HISTORY = 10_000  # events kept


class StateStore(ABC):
    """Versioned records, numbered events, ports, idempotency keys, usage and leases."""

    is_shared = False  # whether several nodes may have it open

    @abstractmethod
    async def commit(self, write: Write) -> Commit:
        """Apply a write as a whole or not at all; on return it is stored (or queued, see Commit).

        Raises Conflict, PortHeld, LeaseLost. A cancelled caller doesn't know whether it was applied;
        repeating the same Write is harmless if it checks the record's version.
        """

    async def put(
        self, record: InstanceRecord, expected_version: int, *, events: Sequence[NewEvent] = ()
    ) -> InstanceRecord:
        """Store a record that is at `expected_version` (0: not there yet); returns it with its new version.

        Raises Conflict.
        """
        stored = replace(record, version=expected_version + 1)
        await self.commit(Write(put=stored, expected_version=expected_version, events=tuple(events)))
        return stored

    async def delete(
        self, instance_id: str, expected_version: int, *, events: Sequence[NewEvent] = ()
    ) -> None:
        """Delete a record and the ports held for it. Raises Conflict."""
        await self.commit(Write(delete=instance_id, expected_version=expected_version, events=tuple(events)))

    async def append(self, events: Sequence[NewEvent]) -> tuple[Event, ...]:
        """Append events; returns them with their ids (none while the write is queued)."""
        return (await self.commit(Write(events=tuple(events)))).events

    async def release_port(self, hold: PortHold) -> None:
        """Release a port; does nothing if another instance holds it."""
        await self.commit(Write(release=hold))

    async def add_usage(self, changes: Sequence[Usage]) -> None:
        """Add to the totals; call it every few seconds, not for each request."""
        await self.commit(Write(usage=tuple(changes)))

    @abstractmethod
    async def get(self, instance_id: str) -> InstanceRecord | None:
        """The record of an instance."""

    @abstractmethod
    async def records(self) -> list[InstanceRecord]:
        """All records, also those of other owners, by instance id."""

    @abstractmethod
    async def events_since(self, event_id: int, limit: int = 1000) -> list[Event]:
        """At most `limit` events after `event_id`, oldest first. A gap in the ids means dropped events."""

    @abstractmethod
    async def last_event_id(self) -> int:
        """The id of the newest event; 0 before the first. Never decreases, not even across restarts."""

    @abstractmethod
    async def ports(self) -> list[PortHold]:
        """All ports held, by node and port."""

    @abstractmethod
    async def usage(self) -> list[Usage]:
        """The totals, by key id and model."""

    @abstractmethod
    async def claim_key(self, key: str, instance_id: str, *, fingerprint: str, ttl_s: float) -> Claim:
        """Claim an idempotency key for an instance; returns the existing claim if it is taken."""

    @abstractmethod
    async def forget_key(self, key: str, instance_id: str) -> None:
        """Release a key whose request has failed, if this instance holds it."""

    @abstractmethod
    async def acquire_lease(
        self, owner: str, ttl_s: float, *, take_over: bool = False, url: str = ""
    ) -> OwnerLease:
        """Become `owner`; from then on this store's writes carry the lease's fence.

        `take_over`: the caller has proof (a lock on its STATE_DIR) that the previous process is dead, so an
        unexpired lease is ignored. `url`: where other nodes reach this one.
        Raises StoreInUse if another live process holds the lease.
        """

    @abstractmethod
    async def renew_lease(self) -> OwnerLease:
        """Extend the lease by `ttl_s`. Raises LeaseLost; RuntimeError without a lease."""

    @abstractmethod
    async def release_lease(self) -> None:
        """Release the lease, so that others see it at once. Does nothing without a lease."""

    @abstractmethod
    async def owners(self) -> list[Owner]:
        """All owners that hold a lease or let one expire without releasing it, by name."""

    async def owner_of(self, instance_id: str) -> Owner | None:
        """The node that supervises an instance, and whether it is alive; None without such a record."""
        record = await self.get(instance_id)
        if record is None:
            return None
        for owner in await self.owners():
            if owner.owner == record.owner:
                return owner
        return Owner(record.owner, 0, 0.0)

    async def tend(self) -> None:
        """Check that the stored files are still in place, and restore them; call this regularly.

        Raises StoreUnavailable if they can't be restored, LeaseLost if another process has taken over.
        """
        return

    @abstractmethod
    def watch(self) -> AsyncIterator[Change]:
        """Changes committed from now on, by any process including this one; ends when the store is closed."""

    @property
    @abstractmethod
    def is_away(self) -> bool:
        """Whether the store works from memory because its server can't be reached now."""

    @abstractmethod
    async def close(self) -> None:
        """End `watch`, release the lease, free all resources. May be called twice."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
