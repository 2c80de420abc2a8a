"""The interface of a state store: what the manager may rely on, whichever store is behind it.

A store keeps what must outlive a Berth; it decides nothing. All methods are safe to call from many tasks of
the event loop that opened the store, and none of them blocks it. Every method may raise StoreUnavailable.
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
    Lease,
    NewEvent,
    Owner,
    PortHold,
    Usage,
    Write,
)
from instance_manager.types import Event

DEFAULT_HISTORY = 10_000  # events kept


class StateStore(ABC):
    """Records with versions, a numbered history, ports, idempotency keys, usage and leases."""

    is_shared = False  # whether several Berths may have it open

    @abstractmethod
    async def commit(self, write: Write) -> Commit:
        """Make all of a write or nothing of it; when this returns it is kept (or queued, see Commit).

        Raises Conflict, PortHeld, LeaseLost. A cancelled caller doesn't know whether it was made; giving the
        same Write again is not harmful where the record's version is checked.
        """

    async def put(
        self, record: InstanceRecord, expected_version: int, *, events: Sequence[NewEvent] = ()
    ) -> InstanceRecord:
        """Store a record that is at `expected_version` now (0: not there); returns it with its new version.

        Raises Conflict.
        """
        stored = replace(record, version=expected_version + 1)
        await self.commit(Write(put=stored, expected_version=expected_version, events=tuple(events)))
        return stored

    async def delete(
        self, instance_id: str, expected_version: int, *, events: Sequence[NewEvent] = ()
    ) -> None:
        """Forget a record and the ports held for it. Raises Conflict."""
        await self.commit(Write(delete=instance_id, expected_version=expected_version, events=tuple(events)))

    async def append(self, events: Sequence[NewEvent]) -> tuple[Event, ...]:
        """Add to the history; returns the events with their numbers (none while the write is queued)."""
        return (await self.commit(Write(events=tuple(events)))).events

    async def hold_port(self, hold: PortHold) -> None:
        """Keep a port for an instance; to hold it again is no fault. Raises PortHeld."""
        await self.commit(Write(hold=hold))

    async def release_port(self, hold: PortHold) -> None:
        """Give a port back; nothing happens if another instance holds it."""
        await self.commit(Write(release=hold))

    async def add_usage(self, changes: Sequence[Usage]) -> None:
        """Add to the totals; call it with what has gathered over some seconds, not for each request."""
        await self.commit(Write(usage=tuple(changes)))

    @abstractmethod
    async def get(self, instance_id: str) -> InstanceRecord | None:
        """The record of an instance."""

    @abstractmethod
    async def records(self) -> list[InstanceRecord]:
        """All records, also those of other owners, by instance id."""

    @abstractmethod
    async def events_since(self, event_id: int, limit: int = 1000) -> list[Event]:
        """At most `limit` events after `event_id`, oldest first. A gap in the ids: some are kept no more."""

    @abstractmethod
    async def last_event_id(self) -> int:
        """The number of the newest event; 0 before the first. It never falls, not even over restarts."""

    @abstractmethod
    async def ports(self) -> list[PortHold]:
        """All ports held, by node and port."""

    @abstractmethod
    async def usage(self) -> list[Usage]:
        """The totals, by key id and model."""

    @abstractmethod
    async def claim_key(self, key: str, instance_id: str, *, fingerprint: str, ttl_s: float) -> Claim:
        """Take an idempotency key for an instance, or learn who has it already. It expires after `ttl_s`."""

    @abstractmethod
    async def forget_key(self, key: str, instance_id: str) -> None:
        """Free a key whose request has failed, if this instance holds it."""

    @abstractmethod
    async def acquire_lease(
        self, owner: str, ttl_s: float, *, take_over: bool = False, url: str = ""
    ) -> Lease:
        """Become `owner`; from then on this store's writes carry the lease's fence.

        `take_over`: the caller has proof (a lock on its STATE_DIR) that the process before it is dead, so a
        lease that has not run out yet is no hindrance. `url`: where other Berths reach this one.
        Raises StoreInUse if another live process holds it.
        """

    @abstractmethod
    async def renew_lease(self) -> Lease:
        """Hold on for another `ttl_s`. Raises LeaseLost; RuntimeError without a lease."""

    @abstractmethod
    async def release_lease(self) -> None:
        """Give the lease back, so that others know at once. Without a lease nothing happens."""

    @abstractmethod
    async def owners(self) -> list[Owner]:
        """All who hold or have held a lease and did not give it back, by name."""

    async def owner_of(self, instance_id: str) -> Owner | None:
        """Who supervises an instance, and whether that Berth is alive; None if there is no such record."""
        record = await self.get(instance_id)
        if record is None:
            return None
        for owner in await self.owners():
            if owner.owner == record.owner:
                return owner
        return Owner(record.owner, 0, 0.0)

    async def tend(self) -> None:
        """Look whether what is kept is still where it was put, and put it back; to be called now and then.

        Raises StoreUnavailable where it can't be put back, and LeaseLost where another Berth has its place.
        """
        return

    @abstractmethod
    def watch(self) -> AsyncIterator[Change]:
        """What is committed from now on, by anyone, this process too; ends when the store is closed."""

    @property
    @abstractmethod
    def is_away(self) -> bool:
        """Whether the store works from memory because what is behind it can't be reached now."""

    @abstractmethod
    async def close(self) -> None:
        """End `watch`, give back the lease, free all resources. To close twice is no fault."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
