"""A node's copy of Redis's data: always readable, and ahead of Redis by the writes queued while it is away.

Pure: no I/O; times are passed in.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from instance_manager.state.stores.errors import StoreUnavailable
from instance_manager.state.stores.records import (
    Change,
    ChangeKind,
    Commit,
    InstanceRecord,
    Owner,
    Usage,
    Write,
)
from instance_manager.state.stores.tables import Tables
from instance_manager.types import Event

COUNTERS = ("requests", "prompt_tokens", "completion_tokens")


@dataclass
class Snapshot:
    """All data of Redis at one moment."""

    tables: Tables
    usage: dict[str, int]  # raw: the JSON of [owner, key id, model, counter] → total
    owners: dict[str, Owner]
    change: int  # the number of the newest change
    position: str  # its id in the stream
    fence: int


@dataclass(frozen=True, slots=True)
class KnownKey:
    """An idempotency key that this process has claimed."""

    key: str
    value: str
    expires_at: float  # monotonic seconds


@dataclass
class Mirror:
    """`known`: confirmed by Redis. `ahead`: the same plus the queued writes, while there is a queue."""

    history: int
    max_queued: int
    known: Tables
    ahead: Tables | None = None
    queue: deque[Write] = field(default_factory=deque)
    usage: dict[str, int] = field(default_factory=dict)
    owners: dict[str, Owner] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)  # owners reported as alive
    keys: dict[str, KnownKey] = field(default_factory=dict)
    fence: int = 0
    changed_at: dict[str, int] = field(default_factory=dict)  # instance → its last change's number

    @property
    def tables(self) -> Tables:
        """The tables to read from."""
        return self.known if self.ahead is None else self.ahead

    def enqueue(self, write: Write, *, in_doubt: bool) -> Commit:
        """Queue a write while Redis is away. Raises Conflict, PortHeld, and StoreUnavailable when full.

        `in_doubt`: it was sent but the reply was lost, so it may be included in `known` already.
        """
        if len(self.queue) >= self.max_queued:
            raise StoreUnavailable(
                f"Redis is away and {len(self.queue)} writes wait already, the limit: this write is refused"
            )
        if self.ahead is None:
            self.ahead = self.known.copy()
        seen = write.put is not None and self.ahead.records.get(write.put.instance_id) == write.put
        gone = write.delete is not None and write.delete not in self.ahead.records
        if not (in_doubt and (seen or gone)):
            self.ahead.apply(write, number_events=False)
        self.queue.append(write)
        return Commit(write.put, (), queued=True)

    def confirm(self, write: Write, number: int, events: tuple[Event, ...], owner: str) -> None:
        """Redis has applied a write of ours, as its change `number`."""
        self.apply(write, number, events)
        for name, amount in usage_fields(write.usage, owner):
            self.usage[name] = self.usage.get(name, 0) + amount

    def apply(self, write: Write, number: int, events: tuple[Event, ...]) -> None:
        """Apply a change, ours or a peer's; a repeated or outdated one does nothing."""
        for event in events:
            self.known.add_event(event)
        if write.release is not None:
            self.known.release(write.release)
        if write.hold is not None:
            self.known.ports[write.hold.node, write.hold.port] = write.hold.instance_id
        instance_id = write.instance_id
        if instance_id is None or self.changed_at.get(instance_id, 0) >= number:
            return
        self.changed_at[instance_id] = number
        if write.put is not None:
            self.known.records[instance_id] = write.put
        else:
            self.known.records.pop(instance_id, None)
            self.known.release_all(instance_id)

    def reset(self, snapshot: Snapshot) -> list[Change]:
        """Start over from a snapshot; returns what has changed."""
        before, now = self.known, snapshot.tables
        changes = [
            Change(ChangeKind.PUT, instance_id, record)
            for instance_id, record in now.records.items()
            if before.records.get(instance_id) != record
        ]
        changes += [
            Change(ChangeKind.DELETED, instance_id)
            for instance_id in before.records
            if instance_id not in now.records
        ]
        if new_events := tuple(event for event in now.events if event.event_id > before.last_event_id):
            changes.append(Change(ChangeKind.EVENTS, events=new_events))
        self.known, self.usage, self.fence = now, snapshot.usage, snapshot.fence
        self.changed_at = {}
        return changes + list(self.replace_owners(snapshot.owners))

    def replace_owners(self, owners: dict[str, Owner]) -> Iterator[Change]:
        """Set the lease holders after a gap; yields the owners that joined or were lost in it."""
        self.owners = owners
        alive = {name for name, owner in owners.items() if owner.is_alive}
        for name in sorted(alive - self.alive):
            yield Change(ChangeKind.OWNER_JOINED, owner=name)
        for name in sorted(self.alive - alive):
            yield Change(ChangeKind.OWNER_LOST, owner=name, reason="its lease expired")
        self.alive = alive

    def expired_owners(self, owners: dict[str, Owner]) -> Iterator[Change]:
        """Set the lease holders; yields expired ones. The stream of changes reports everything else."""
        self.owners = owners
        for name in sorted(self.alive):
            if name in owners and not owners[name].is_alive:
                self.alive.discard(name)
                yield Change(ChangeKind.OWNER_LOST, owner=name, reason="its lease expired")

    def own_records(self, owner: str) -> list[InstanceRecord]:
        """The confirmed records that this node may restore; all if it never had a name."""
        return [record for record in self.known.records.values() if owner in ("", record.owner)]

    def lacks(self, snapshot: Snapshot, owner: str) -> bool:
        """Whether Redis has lost data that this node may restore."""
        if not owner:
            return False  # without a name, no record is known to be ours: another node may have deleted it
        stored = snapshot.tables
        own = self.own_records(owner)
        ids = {record.instance_id for record in own}
        return (
            any(stored.version(record.instance_id) < record.version for record in own)
            or any(holder in ids and where not in stored.ports for where, holder in self.known.ports.items())
            or any(name not in snapshot.usage for name in self.own_usage(owner))
        )

    def own_usage(self, owner: str) -> list[str]:
        """This node's raw fields of usage."""
        return [name for name in self.usage if json.loads(name)[0] == owner]

    def usage_totals(self) -> list[Usage]:
        """The totals of all owners, plus queued writes."""
        sums = Tables(0)
        for name, amount in self.usage.items():
            _, key_id, model, counter = json.loads(name)
            sums.add_usage(Usage(key_id, model, **{counter: amount}))
        for write in self.queue:
            for used in write.usage:
                sums.add_usage(used)
        return sums.usage_totals()


def usage_fields(usage: tuple[Usage, ...], owner: str) -> list[tuple[str, int]]:
    """Changes of usage as fields of the `usage` hash; the first counter is included even at zero."""
    return [
        (json.dumps([owner, used.key_id, used.model, counter]), getattr(used, counter))
        for used in usage
        for counter in COUNTERS
        if getattr(used, counter) or counter == COUNTERS[0]
    ]
