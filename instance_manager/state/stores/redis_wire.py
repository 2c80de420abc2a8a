"""Conversion between our types and Redis's: writes, changes and snapshots. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from instance_manager.state.stores.errors import Conflict, LeaseLost, PortHeld, StoreError
from instance_manager.state.stores.records import (
    UNREADABLE,
    InstanceRecord,
    NewEvent,
    Owner,
    PortHold,
    Write,
    readable_records,
)
from instance_manager.state.stores.redis_mirror import COUNTERS, KnownKey, Mirror, Snapshot, usage_fields
from instance_manager.state.stores.tables import Tables
from instance_manager.types import Event


def port_field(node: str, port: int) -> str:
    return json.dumps([node, port])


def write_to_json(write: Write, owner: str, session: str | None) -> str:
    """A write for the COMMIT script. `session`: of the lease that it is made under, if any."""
    data: dict[str, Any] = {
        "events": [_event_body(event) for event in write.events],
        "first": write.first_event_id,
        "usage": [[name, str(amount)] for name, amount in usage_fields(write.usage, owner)],
    }
    if session is not None:
        data.update(owner=owner, session=session)
    if write.instance_id is not None:
        data.update(instance=write.instance_id, expected=write.expected_version)
    if write.put is not None:
        data["put"] = write.put.to_json()
    for name, hold in (("hold", write.hold), ("release", write.release)):
        if hold is not None:
            data[name] = {"port": port_field(hold.node, hold.port), "instance": hold.instance_id}
    return json.dumps(data)


def change_from_json(text: str, first_event_id: int) -> tuple[Write, tuple[Event, ...]]:
    """A peer's write, read from the stream of changes, with its numbered events."""
    data = json.loads(text)
    put = InstanceRecord.from_json(data["put"]) if "put" in data else None
    write = Write(
        put=put,
        delete=data["instance"] if put is None and "instance" in data else None,
        expected_version=data.get("expected", 0),
        hold=_hold(data.get("hold")),
        release=_hold(data.get("release")),
    )
    return write, tuple(_event(first_event_id + place, body) for place, body in enumerate(data["events"]))


def refusal(write: Write, reply: Mapping[str, Any]) -> StoreError:
    """The error for a script's refusal of this write."""
    match reply["error"]:
        case "conflict":
            return Conflict(write.instance_id or "", write.expected_version, int(reply["found"]))
        case "port_held" if write.hold is not None:
            return PortHeld(write.hold.node, write.hold.port, reply["holder"])
        case _:
            return lease_lost()


def lease_lost() -> LeaseLost:
    return LeaseLost("another process uses this node's name: this one writes nothing more")


def snapshot_from(
    history: int,
    records: Mapping[str, str],
    ports: Mapping[str, str],
    usage: Mapping[str, str],
    events: Sequence[tuple[str, Mapping[str, str]]],  # newest first
    counters: Mapping[str, str],
    changes: Sequence[tuple[str, Mapping[str, str]]],
    leases: Mapping[str, str],
    time: tuple[int, int],
) -> Snapshot:
    """From the replies to the commands of `RedisLink.snapshot`, in their order."""
    tables = Tables(history)
    tables.records = {each.instance_id: each for each in readable_records(records.items())}
    for where, holder in ports.items():
        with suppress(*UNREADABLE):
            node, port = json.loads(where)
            tables.ports[str(node), int(port)] = holder
    for stream_id, entry in reversed(events):
        with suppress(*UNREADABLE):
            tables.add_event(_event(int(stream_id.partition("-")[0]), entry["b"]))
    tables.last_event_id = max(tables.last_event_id, int(counters.get("event", 0)))
    return Snapshot(
        tables,
        usage_from(usage),
        owners_from(leases, time),
        int(counters.get("change", 0)),
        changes[0][0] if changes else "0",
        int(counters.get("fence", 0)),
    )


def owners_from(leases: Mapping[str, str], time: tuple[int, int]) -> dict[str, Owner]:
    """From the hash of leases, by Redis's clock (seconds, microseconds)."""
    now_ms = time[0] * 1000 + time[1] // 1000
    owners = {}
    for name, body in sorted(leases.items()):
        with suppress(*UNREADABLE):
            lease = json.loads(body)
            left_s = (int(lease["expires"]) - now_ms) / 1000
            owners[name] = Owner(name, int(lease["fence"]), left_s, str(lease.get("url", "")))
    return owners


def usage_from(fields: Mapping[str, str]) -> dict[str, int]:
    """From the hash of usage, without foreign fields."""
    found = {}
    for name, amount in fields.items():
        with suppress(*UNREADABLE):
            _, _, _, counter = json.loads(name)
            if counter in COUNTERS:
                found[name] = int(amount)
    return found


def restore_json(mirror: Mirror, owner: str, now: float, done_key: Callable[[str], str]) -> str:
    """What the RESTORE script may restore for this node: its own data, and the shared events.

    A write whose reply was lost may have been applied; if so (see `done_key`), its record is left alone.
    """
    head = mirror.queue[0] if mirror.queue else None
    records = mirror.own_records(owner)
    own = {record.instance_id for record in records}
    return json.dumps(
        {
            "records": [
                {"id": each.instance_id, "version": each.version, "body": each.to_json()} for each in records
            ],
            "ports": [
                [port_field(*where), holder]
                for where, holder in mirror.known.ports.items()
                if owner == "" or holder in own
            ],
            "usage": [[name, str(mirror.usage[name])] for name in mirror.own_usage(owner)],
            "keys": [
                {"key": each.key, "value": each.value, "ttl_ms": int((each.expires_at - now) * 1000)}
                for each in live_keys(mirror, now)
            ],
            "events": [{"id": each.event_id, "body": _event_body(each)} for each in mirror.known.events],
            "event": mirror.known.last_event_id,
            "fence": mirror.fence,
            "in_doubt": {
                "id": (head.instance_id or "") if head else "",
                "key": done_key(head.write_id if head else "none"),
            },
        }
    )


def live_keys(mirror: Mirror, now: float) -> list[KnownKey]:
    """Claims that don't expire within a moment; drops the others."""
    mirror.keys = {name: each for name, each in mirror.keys.items() if each.expires_at > now + 0.01}
    return list(mirror.keys.values())


def without_record(write: Write) -> Write:
    """The rest of a write whose record or port was refused: its events and usage still count."""
    return replace(
        write,
        put=None,
        delete=None,
        expected_version=0,
        hold=None,
        release=None,
        write_id=f"{write.write_id}-rest",
    )


def _event_body(event: NewEvent | Event) -> str:
    return json.dumps([event.type, event.instance_id, event.time, dict(event.data)])


def _event(event_id: int, body: str) -> Event:
    event_type, instance_id, time, data = json.loads(body)
    return Event(event_id, event_type, time, instance_id, data)


def _hold(data: Mapping[str, str] | None) -> PortHold | None:
    if data is None:
        return None
    node, port = json.loads(data["port"])
    return PortHold(node, port, data["instance"])
