"""The state as plain tables in memory: for the memory store, and for the Redis store's mirror.

Pure: no I/O, no clock; every method is synchronous, and either succeeds or raises without any change.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from instance_manager.state.stores.errors import Conflict, PortHeld
from instance_manager.state.stores.records import Commit, InstanceRecord, NewEvent, PortHold, Usage, Write
from instance_manager.types import Event


def _event_id(event: Event) -> int:
    return event.event_id


@dataclass
class Tables:
    """Records, ports, usage and the last `history` events."""

    history: int
    records: dict[str, InstanceRecord] = field(default_factory=dict)
    ports: dict[tuple[str, int], str] = field(default_factory=dict)
    usage: dict[tuple[str, str], Usage] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    last_event_id: int = 0

    def copy(self) -> Tables:
        """An independent copy."""
        return Tables(
            self.history,
            dict(self.records),
            dict(self.ports),
            dict(self.usage),
            list(self.events),
            self.last_event_id,
        )

    def version(self, instance_id: str) -> int:
        """The version of a record; 0 if there is none."""
        record = self.records.get(instance_id)
        return 0 if record is None else record.version

    def check(self, write: Write) -> None:
        """Raise Conflict or PortHeld if the write can't be applied."""
        instance_id = write.instance_id
        if instance_id is not None and (found := self.version(instance_id)) != write.expected_version:
            raise Conflict(instance_id, write.expected_version, found)
        if (hold := write.hold) is not None:
            holder = self.ports.get((hold.node, hold.port), hold.instance_id)
            if holder != hold.instance_id:
                raise PortHeld(hold.node, hold.port, holder)

    def apply(self, write: Write, *, number_events: bool = True) -> Commit:
        """Apply the write. Raises as `check` does. Without `number_events` its events are left out."""
        self.check(write)
        if write.delete is not None:
            self.records.pop(write.delete, None)
            self.release_all(write.delete)
        if write.put is not None:
            self.records[write.put.instance_id] = write.put
        if write.release is not None:
            self.release(write.release)
        if write.hold is not None:
            self.ports[write.hold.node, write.hold.port] = write.hold.instance_id
        for used in write.usage:
            self.add_usage(used)
        events = self.append(write.events, write.first_event_id) if number_events else ()
        return Commit(write.put, events)

    def append(self, new: Iterable[NewEvent], first_event_id: int = 0) -> tuple[Event, ...]:
        """Number the events, from `first_event_id` if it is free, and store them."""
        first = max(self.last_event_id + 1, first_event_id)
        events = tuple(event.numbered(first + place) for place, event in enumerate(new))
        for event in events:
            self.add_event(event)
        return events

    def add_event(self, event: Event) -> None:
        """Store a numbered event; does nothing if it is known already."""
        place = bisect_right(self.events, event.event_id, key=_event_id)
        if place and self.events[place - 1].event_id == event.event_id:
            return
        insort(self.events, event, key=_event_id)
        self.last_event_id = max(self.last_event_id, event.event_id)
        if len(self.events) > self.history:
            del self.events[: len(self.events) - self.history]

    def events_since(self, event_id: int, limit: int) -> list[Event]:
        """At most `limit` events after `event_id`, oldest first."""
        start = bisect_right(self.events, event_id, key=_event_id)
        return self.events[start : start + limit]

    def release(self, hold: PortHold) -> None:
        """Release a port, if this instance holds it."""
        if self.ports.get((hold.node, hold.port)) == hold.instance_id:
            del self.ports[hold.node, hold.port]

    def release_all(self, instance_id: str) -> None:
        """Release all ports of an instance."""
        self.ports = {where: holder for where, holder in self.ports.items() if holder != instance_id}

    def add_usage(self, used: Usage) -> None:
        """Add to the totals of a key and model."""
        where = (used.key_id, used.model)
        before = self.usage.get(where)
        self.usage[where] = used if before is None else before.plus(used)

    def port_holds(self) -> list[PortHold]:
        return [PortHold(node, port, holder) for (node, port), holder in sorted(self.ports.items())]

    def usage_totals(self) -> list[Usage]:
        return [self.usage[where] for where in sorted(self.usage)]
