"""What is stored: instance records, ports, idempotency keys, usage, leases. Data only, to JSON and back.

All times are wall-clock seconds since the epoch, all durations seconds. Secrets (`token`, `api_key`, and what
a spec may carry in `env` and `params`) are stored, but left out of `repr`.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from instance_manager.types import Event, ExpireAction, InstanceSpec, InstanceState

logger = logging.getLogger("berth.state")

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # raised for damaged JSON


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """Everything a later process needs to find an engine again and to continue with its instance."""

    instance_id: str
    state: InstanceState
    owner: str  # the node that supervises it; see `owner_id`
    spec: InstanceSpec = field(repr=False)  # as requested
    model_name: str = ""
    served_model_name: str = ""
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)  # as merged
    command: Sequence[str] = ()  # as run, secrets masked
    host: str = "127.0.0.1"
    port: int | None = None
    pid: int | None = None
    pid_start_ticks: int | None = None  # field 22 of /proc/PID/stat: detects a reused pid
    boot_id: str | None = None  # pids and ticks mean nothing after a reboot
    token: str | None = field(default=None, repr=False)  # in the engine's environment
    api_key: str | None = field(default=None, repr=False)  # the engine's own key
    generation: int = 0  # processes started so far
    log_path: str | None = None
    status_reason: str = ""
    failure: Mapping[str, Any] | None = None
    timeout_s: float = 0.0
    pinned: bool = False
    sleep_level: int = 0
    memory_bytes: int | None = None
    created_at: float = 0.0
    started_at: float = 0.0
    ready_at: float | None = None
    last_active: float = 0.0
    updated_at: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)  # JSON; other data of the writer
    version: int = 0  # set by the store; 0 = never stored

    def to_json(self) -> str:
        """One line of JSON; `from_json` restores an equal record."""
        return json.dumps(_fields(self), default=_plain, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> InstanceRecord:
        """The record; unknown keys (of a newer Berth) are ignored.

        Raises ValueError, TypeError, KeyError, AttributeError or RecursionError for an invalid record.
        """
        data = _read(json.loads(text), cls)
        data["state"] = InstanceState(data["state"])
        data["spec"] = _spec(data["spec"])
        data["command"] = tuple(map(str, data.get("command") or ()))
        return cls(**data)


def stored_fields(spec: InstanceSpec) -> dict[str, Any]:
    """A spec as it is stored."""
    return {name: item for name, item in _fields(spec).items() if item or name not in _OPTIONAL}


def _fields(item: InstanceRecord | InstanceSpec | Event) -> dict[str, Any]:
    return {each.name: getattr(item, each.name) for each in fields(item)}


# Later than the first format: stored only if they are set, so that other records stay as they were.
_OPTIONAL = frozenset(("engine_reason", "stop_command", "runtime", "image", "volumes", "gpus", "run_args"))


def _plain(value: object) -> object:
    """For types that json doesn't support."""
    if isinstance(value, InstanceSpec):
        return stored_fields(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} can't be stored in the state: {value!r}")


_JSON_TYPES: Mapping[Any, type] = {
    Mapping: dict,
    Sequence: list,
    InstanceSpec: dict,
    InstanceState: str,
    ExpireAction: str,
}


@cache
def _json_types(cls: type) -> Mapping[str, type]:
    """Of each field, by its annotation; null apart."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        options = [one for one in get_args(hint) if one is not NoneType]
        kind = options[0] if get_origin(hint) is UnionType else hint
        found[name] = _JSON_TYPES.get(get_origin(kind) or kind, kind)
    return found


def _read(stored: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """The class's fields without nulls: where a field may be null, that is its default.

    Raises TypeError or ValueError for damage, so that it is found here, not where it is used.
    """
    kinds = _json_types(cls)
    data = {name: value for name, value in stored.items() if name in kinds and value is not None}
    for name, value in data.items():
        kind = kinds[name]
        is_valid = isinstance(value, (int, float) if kind is float else kind)
        if not is_valid or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{name} is {type(value).__name__}, not {kind.__name__}")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} is not a number")
    return data


def _spec(data: dict[str, Any]) -> InstanceSpec:
    data = _read(data, InstanceSpec)
    for name in ("devices", "command", "stop_command", "volumes", "run_args"):
        if data.get(name) is not None:
            data[name] = tuple(map(str, data[name]))
    if data.get("expire_action") is not None:
        data["expire_action"] = ExpireAction(data["expire_action"])
    return InstanceSpec(**data)


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event that the store will number."""

    type: str
    instance_id: str
    time: float
    data: Mapping[str, Any] = field(default_factory=dict)

    def numbered(self, event_id: int) -> Event:
        return Event(event_id, self.type, self.time, self.instance_id, self.data)


def readable_records(rows: Iterable[tuple[str, str]]) -> list[InstanceRecord]:
    """Records from pairs of instance id and JSON; unreadable ones are logged and skipped."""
    found = []
    for instance_id, body in rows:
        try:
            found.append(InstanceRecord.from_json(body))
        except UNREADABLE as exc:
            logger.error("the record of instance=%s can't be read and is skipped: %r", instance_id, exc)
    return found


def readable_events(bodies: Iterable[str]) -> list[Event]:
    """Events from JSON; unreadable ones are logged and skipped."""
    found = []
    for body in bodies:
        try:
            found.append(event_from_json(body))
        except UNREADABLE as exc:
            logger.error("an event can't be read and is skipped: %r", exc)
    return found


def event_to_json(event: Event) -> str:
    """One line of JSON; `event_from_json` restores an equal event."""
    return json.dumps(_fields(event), default=_plain, separators=(",", ":"))


def event_from_json(text: str) -> Event:
    """The event that `event_to_json` wrote."""
    return Event(**json.loads(text))


@dataclass(frozen=True, slots=True)
class PortHold:
    """A port of a machine (`node`: its name and boot id) reserved for an instance."""

    node: str
    port: int
    instance_id: str


MAX_COUNT = 2**62 - 1
"""The maximum of a total: the sum of two still fits into SQLite and Redis."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of one model by one API key (its id, never the key), as a change or as a total."""

    key_id: str
    model: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: Usage) -> Usage:
        """The sum, capped at MAX_COUNT whatever engines report; key and model are taken from `self`."""
        return Usage(
            self.key_id,
            self.model,
            min(self.requests + other.requests, MAX_COUNT),
            min(self.prompt_tokens + other.prompt_tokens, MAX_COUNT),
            min(self.completion_tokens + other.completion_tokens, MAX_COUNT),
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """The holder of an idempotency key. Equal fingerprints mean equal requests."""

    key: str
    instance_id: str
    fingerprint: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class OwnerLease:
    """The right to write as `owner` until it expires. A later lease has a higher `fence`."""

    owner: str
    session: str  # the process that holds it
    fence: int
    ttl_s: float  # seconds from now; infinite where only one process can hold the store
    url: str = ""  # where other nodes reach this one


@dataclass(frozen=True, slots=True)
class Owner:
    """A node as its peers see it."""

    owner: str
    fence: int
    expires_in_s: float
    url: str = ""  # where it can be reached; empty = unknown

    @property
    def is_alive(self) -> bool:
        return self.expires_in_s > 0


@dataclass(frozen=True, slots=True)
class Write:
    """Changes to apply atomically. `write_id` makes a repetition harmless.

    `expected_version` is checked if there is a record to put or to delete (`delete`: its instance id);
    a record to put carries `version = expected_version + 1`.
    """

    put: InstanceRecord | None = None
    delete: str | None = None
    expected_version: int = 0
    events: tuple[NewEvent, ...] = ()
    first_event_id: int = 0  # as published; the store's next id if that is higher
    hold: PortHold | None = None
    release: PortHold | None = None
    usage: tuple[Usage, ...] = ()
    write_id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def instance_id(self) -> str | None:
        """The instance whose record this changes."""
        return self.delete if self.put is None else self.put.instance_id


@dataclass(frozen=True, slots=True)
class Commit:
    """The result of a write. While Redis is away it is `queued`: applied locally, its events unnumbered."""

    record: InstanceRecord | None = None
    events: tuple[Event, ...] = ()
    queued: bool = False


class ChangeKind(StrEnum):
    """What `StateStore.watch` reports."""

    PUT = "put"
    DELETED = "deleted"
    EVENTS = "events"  # events without a record
    OWNER_JOINED = "owner_joined"
    OWNER_LOST = "owner_lost"  # its lease expired or was released
    REBUILT = "rebuilt"  # stored data was lost: each node must write its records again
    REJECTED = "rejected"  # a queued write that was refused: `record` is what the store has instead


@dataclass(frozen=True, slots=True)
class Change:
    """A committed change, by this process or another one."""

    kind: ChangeKind
    instance_id: str | None = None
    record: InstanceRecord | None = None
    events: tuple[Event, ...] = ()
    owner: str | None = None
    reason: str = ""
