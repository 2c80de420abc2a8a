"""What is kept: instance records, ports, idempotency keys, usage, leases. Data only, JSON both ways.

All times are wall-clock seconds since the epoch, all durations seconds. Values that are secret (`token`,
`api_key`, and what a spec may carry in `env` and `params`) are written to the store and left out of `repr`.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from instance_manager.types import Event, ExpireAction, InstanceSpec, InstanceState

logger = logging.getLogger("berth.state")

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # raised for damaged JSON

# What a stored field may be, apart from null: what has been damaged is found here, and not by who uses it.
_RECORD_KINDS: dict[type, tuple[str, ...]] = {
    str: (
        *("instance_id", "owner", "model_name", "served_model_name", "host", "boot_id", "token", "api_key"),
        *("log_path", "status_reason"),
    ),
    int: ("port", "pid", "pid_start_ticks", "generation", "sleep_level", "memory_bytes", "version"),
    float: ("timeout_s", "created_at", "started_at", "ready_at", "last_active", "updated_at"),
    dict: ("spec", "params", "failure", "extra"),
    list: ("command",),
    bool: ("pinned",),
}
_SPEC_KINDS: dict[type, tuple[str, ...]] = {
    str: ("model_name", "engine", "name", "health_path", "profile"),
    float: ("timeout_s",),
    dict: ("params", "env"),
    list: ("devices", "command"),
}


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """Everything a later Berth needs to find an engine again and to go on with its instance."""

    instance_id: str
    state: InstanceState
    owner: str  # the Berth that supervises it; see `owner_id`
    spec: InstanceSpec = field(repr=False)  # what was asked for
    model_name: str = ""
    served_model_name: str = ""
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)  # as merged
    command: Sequence[str] = ()  # as run, secrets masked
    host: str = "127.0.0.1"
    port: int | None = None
    pid: int | None = None
    pid_start_ticks: int | None = None  # field 22 of /proc/PID/stat: tells a process from a later namesake
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
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)  # JSON; whatever else the writer needs
    version: int = 0  # set by the store; 0 = never stored

    def to_json(self) -> str:
        """One line of JSON; `from_json` gives an equal record back."""
        return json.dumps(_fields(self), default=_plain, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> InstanceRecord:
        """The record; keys that this Berth doesn't know (a newer one wrote them) are passed over.

        Raises ValueError, TypeError, KeyError, AttributeError or RecursionError for what is no record.
        """
        known = {item.name for item in fields(cls)}
        data = {name: value for name, value in json.loads(text).items() if name in known}
        _check_kinds(data, _RECORD_KINDS)
        data["state"] = InstanceState(data["state"])
        data["spec"] = _spec(data["spec"])
        data["command"] = tuple(data.get("command") or ())
        return cls(**data)


def _fields(item: InstanceRecord | InstanceSpec | Event) -> dict[str, Any]:
    return {each.name: getattr(item, each.name) for each in fields(item)}


def _plain(value: object) -> object:
    """For json: what it doesn't know itself."""
    if isinstance(value, InstanceSpec):
        return _fields(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} can't be kept in the state: {value!r}")


def _check_kinds(data: Mapping[str, Any], kinds: Mapping[type, tuple[str, ...]]) -> None:
    """Raise TypeError where a field that isn't null is of another kind; `float` takes whole numbers too."""
    for kind, names in kinds.items():
        for name in names:
            value = data.get(name)
            is_right = isinstance(value, (int, float) if kind is float else kind) or value is None
            if not is_right or (isinstance(value, bool) and kind is not bool):
                raise TypeError(f"{name} is {type(value).__name__}, not {kind.__name__}")


def _spec(data: dict[str, Any]) -> InstanceSpec:
    known = {item.name for item in fields(InstanceSpec)}
    data = {name: value for name, value in data.items() if name in known}
    _check_kinds(data, _SPEC_KINDS)
    for name in ("devices", "command"):
        if data.get(name) is not None:
            data[name] = tuple(data[name])
    if data.get("expire_action") is not None:
        data["expire_action"] = ExpireAction(data["expire_action"])
    return InstanceSpec(**data)


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event that the store is to number."""

    type: str
    instance_id: str
    time: float
    data: Mapping[str, Any] = field(default_factory=dict)

    def numbered(self, event_id: int) -> Event:
        return Event(event_id, self.type, self.time, self.instance_id, self.data)


def readable_records(rows: Iterable[tuple[str, str]]) -> list[InstanceRecord]:
    """Records from pairs of instance id and JSON; one that can't be read is logged, and hides no other."""
    found = []
    for instance_id, body in rows:
        try:
            found.append(InstanceRecord.from_json(body))
        except UNREADABLE as exc:
            logger.error("the record of instance=%s can't be read and is passed over: %r", instance_id, exc)
    return found


def readable_events(bodies: Iterable[str]) -> list[Event]:
    """Events from JSON; those that can't be read are passed over."""
    found = []
    for body in bodies:
        try:
            found.append(event_from_json(body))
        except UNREADABLE as exc:
            logger.error("an event can't be read and is passed over: %r", exc)
    return found


def event_to_json(event: Event) -> str:
    """One line of JSON; `event_from_json` gives an equal event back."""
    return json.dumps(_fields(event), default=_plain, separators=(",", ":"))


def event_from_json(text: str) -> Event:
    """The event that `event_to_json` wrote."""
    return Event(**json.loads(text))


@dataclass(frozen=True, slots=True)
class PortHold:
    """A port of one machine (`node`: its name or boot id) kept for an instance."""

    node: str
    port: int
    instance_id: str


MAX_COUNT = 2**62 - 1
"""Of a total: two of them still add up to what SQLite and Redis can hold."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one API key (its id, never the key) has used of one model; as a change or as a total."""

    key_id: str
    model: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: Usage) -> Usage:
        """The sum; key and model are this one's. It ends at MAX_COUNT, whatever engines tell."""
        return Usage(
            self.key_id,
            self.model,
            min(self.requests + other.requests, MAX_COUNT),
            min(self.prompt_tokens + other.prompt_tokens, MAX_COUNT),
            min(self.completion_tokens + other.completion_tokens, MAX_COUNT),
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """Who holds an idempotency key. `fingerprint` tells whether the later request was the same one."""

    key: str
    instance_id: str
    fingerprint: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write as `owner` until it runs out. A later lease has a higher `fence`."""

    owner: str
    session: str  # the process that holds it
    fence: int
    ttl_s: float  # seconds from now; infinite where only one process can hold the store
    url: str = ""  # where other Berths reach this one


@dataclass(frozen=True, slots=True)
class Owner:
    """A Berth as the others see it."""

    owner: str
    fence: int
    expires_in_s: float
    url: str = ""  # where it is reached; empty = it hasn't said

    @property
    def is_alive(self) -> bool:
        return self.expires_in_s > 0


@dataclass(frozen=True, slots=True)
class Write:
    """What is to happen at once or not at all. `write_id` makes a repetition harmless.

    `expected_version` is checked when there is a record to put or to delete (`delete`: its instance id);
    a record put carries `version = expected_version + 1`.
    """

    put: InstanceRecord | None = None
    delete: str | None = None
    expected_version: int = 0
    events: tuple[NewEvent, ...] = ()
    first_event_id: int = 0  # as it was told; the store's next, if that is higher
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
    """What became of a write. While Redis is away it is `queued`: done here alone, its events unnumbered."""

    record: InstanceRecord | None = None
    events: tuple[Event, ...] = ()
    queued: bool = False


class ChangeKind(StrEnum):
    """What `StateStore.watch` tells."""

    PUT = "put"
    DELETED = "deleted"
    EVENTS = "events"  # events without a record
    OWNER_JOINED = "owner_joined"
    OWNER_LOST = "owner_lost"  # its lease ran out or was given back
    REBUILT = "rebuilt"  # something of what was kept has been lost: whoever has a record writes it again
    REJECTED = "rejected"  # a queued write that could not be made after all: `record` is what holds instead


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was committed, by this process or by another."""

    kind: ChangeKind
    instance_id: str | None = None
    record: InstanceRecord | None = None
    events: tuple[Event, ...] = ()
    owner: str | None = None
    reason: str = ""
