"""What a Berth knows of Redis: read at any time, and ahead of Redis by the writes queued while it is away.

Pure: no I/O; times are handed in.
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
    """All that Redis knows, at one moment."""

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
    """`known` is what Redis has confirmed; `ahead` the same with the queue on top, while there is a queue."""

    history: int
    max_queued: int
    known: Tables
    ahead: Tables | None = None
    queue: deque[Write] = field(default_factory=deque)
    usage: dict[str, int] = field(default_factory=dict)
    owners: dict[str, Owner] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)  # owners told to be alive
    keys: dict[str, KnownKey] = field(default_factory=dict)
    fence: int = 0
    changed_at: dict[str, int] = field(default_factory=dict)  # instance → the newest change applied to it

    @property
    def tables(self) -> Tables:
        """What to read from."""
        return self.known if self.ahead is None else self.ahead

    def enqueue(self, write: Write, *, in_doubt: bool) -> Commit:
        """Take a write that Redis can't take now. Raises Conflict, PortHeld, and StoreUnavailable when full.

        `in_doubt`: it was sent and the answer got lost, so it may be in what is known already.
        """
        if len(self.queue) >= self.max_queued:
            raise StoreUnavailable(
                f"Redis is away and {len(self.queue)} writes wait for it already: this one is refused"
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
        """Redis has taken a write of ours, as its change `number`."""
        self.apply(write, number, events)
        for name, amount in usage_fields(write.usage, owner):
            self.usage[name] = self.usage.get(name, 0) + amount

    def apply(self, write: Write, number: int, events: tuple[Event, ...]) -> None:
        """A change, ours or another's; one that comes a second time, or after a later one, alters nothing."""
        for event in events:
            self.known.take_event(event)
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
        """Start anew from what Redis says; returns what has changed since."""
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
        if news := tuple(event for event in now.events if event.event_id > before.last_event_id):
            changes.append(Change(ChangeKind.EVENTS, events=news))
        self.known, self.usage, self.fence = now, snapshot.usage, snapshot.fence
        self.changed_at = {}
        return changes + list(self.take_owners(snapshot.owners))

    def take_owners(self, owners: dict[str, Owner]) -> Iterator[Change]:
        """Note who holds leases now, after a gap; tells whose life began or ended in it."""
        self.owners = owners
        alive = {name for name, owner in owners.items() if owner.is_alive}
        for name in sorted(alive - self.alive):
            yield Change(ChangeKind.OWNER_JOINED, owner=name)
        for name in sorted(self.alive - alive):
            yield Change(ChangeKind.OWNER_LOST, owner=name, reason="its lease ran out")
        self.alive = alive

    def expired_owners(self, owners: dict[str, Owner]) -> Iterator[Change]:
        """Note who holds leases now; tells whose has run out. All else is told by the stream of changes."""
        self.owners = owners
        for name in sorted(self.alive):
            if name in owners and not owners[name].is_alive:
                self.alive.discard(name)
                yield Change(ChangeKind.OWNER_LOST, owner=name, reason="its lease ran out")

    def own_records(self, owner: str) -> list[InstanceRecord]:
        """The confirmed records that are ours to restore; all, if we never had a name."""
        return [record for record in self.known.records.values() if owner in ("", record.owner)]

    def lacks(self, snapshot: Snapshot, owner: str) -> bool:
        """Whether Redis has lost something that is ours to restore."""
        if not owner:
            return False  # nameless, nothing is known to be ours: another may have deleted it
        there = snapshot.tables
        own = self.own_records(owner)
        ids = {record.instance_id for record in own}
        return (
            any(there.version(record.instance_id) < record.version for record in own)
            or any(holder in ids and where not in there.ports for where, holder in self.known.ports.items())
            or any(name not in snapshot.usage for name in self.own_usage(owner))
        )

    def own_usage(self, owner: str) -> list[str]:
        """The raw fields of usage that are this Berth's."""
        return [name for name in self.usage if json.loads(name)[0] == owner]

    def usage_totals(self) -> list[Usage]:
        """The totals of all owners, with what waits in the queue."""
        sums = Tables(0)
        for name, amount in self.usage.items():
            _, key_id, model, counter = json.loads(name)
            sums.add_usage(Usage(key_id, model, **{counter: amount}))
        for write in self.queue:
            for used in write.usage:
                sums.add_usage(used)
        return sums.usage_totals()


def usage_fields(usage: tuple[Usage, ...], owner: str) -> list[tuple[str, int]]:
    """Changes of usage as fields of the `usage` hash; the first counter is there even at zero."""
    return [
        (json.dumps([owner, used.key_id, used.model, counter]), getattr(used, counter))
        for used in usage
        for counter in COUNTERS
        if getattr(used, counter) or counter == COUNTERS[0]
    ]
