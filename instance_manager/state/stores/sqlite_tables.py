"""Reading and writing the SQLite tables, on a connection: plain functions, run in the store's thread.

They raise sqlite3.Error; callers translate it.
"""

from __future__ import annotations

import logging
import sqlite3

from instance_manager.state.stores.errors import Conflict, PortHeld
from instance_manager.state.stores.records import (
    MAX_COUNT,
    Claim,
    Commit,
    InstanceRecord,
    PortHold,
    Usage,
    Write,
    event_to_json,
    readable_events,
    readable_records,
)
from instance_manager.types import Event

logger = logging.getLogger("berth.state")


class Transaction:
    """All or nothing; a failing rollback doesn't hide the first error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        if self._connection.in_transaction:  # an earlier rollback failed
            self._connection.execute("ROLLBACK")
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as exc:
                logger.warning("a failed write of the state could not be rolled back: %s", exc)


def commit(connection: sqlite3.Connection, write: Write, history: int) -> Commit:
    with Transaction(connection):
        if write.instance_id is not None:
            _change_record(connection, write, write.instance_id)
        if write.release is not None:
            connection.execute(
                "DELETE FROM ports WHERE node = ? AND port = ? AND instance_id = ?",
                (write.release.node, write.release.port, write.release.instance_id),
            )
        if write.hold is not None:
            _hold(connection, write.hold)
        connection.executemany(
            "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET"
            " requests = MIN(requests + excluded.requests, ?6),"
            " prompt_tokens = MIN(prompt_tokens + excluded.prompt_tokens, ?6),"
            " completion_tokens = MIN(completion_tokens + excluded.completion_tokens, ?6)",
            [
                (u.key_id, u.model, u.requests, u.prompt_tokens, u.completion_tokens, MAX_COUNT)
                for u in write.usage
            ],
        )
        events = _append(connection, write, history)
    return Commit(write.put, events)


def _change_record(connection: sqlite3.Connection, write: Write, instance_id: str) -> None:
    row = connection.execute("SELECT version FROM records WHERE instance_id = ?", (instance_id,)).fetchone()
    found: int = 0 if row is None else row[0]
    if found != write.expected_version:
        raise Conflict(instance_id, write.expected_version, found)
    if write.put is None:
        connection.execute("DELETE FROM records WHERE instance_id = ?", (instance_id,))
        connection.execute("DELETE FROM ports WHERE instance_id = ?", (instance_id,))
    else:
        connection.execute(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?)",
            (instance_id, write.put.version, write.put.to_json()),
        )


def _hold(connection: sqlite3.Connection, hold: PortHold) -> None:
    where = (hold.node, hold.port)
    row = connection.execute("SELECT instance_id FROM ports WHERE node = ? AND port = ?", where).fetchone()
    if row is not None and row[0] != hold.instance_id:
        raise PortHeld(hold.node, hold.port, row[0])
    connection.execute("INSERT OR REPLACE INTO ports VALUES (?, ?, ?)", (*where, hold.instance_id))


def _append(connection: sqlite3.Connection, write: Write, history: int) -> tuple[Event, ...]:
    if not write.events:
        return ()
    first = max(_read_counter(connection, "event_id") + 1, write.first_event_id)
    events = tuple(event.numbered(first + place) for place, event in enumerate(write.events))
    connection.executemany(
        "INSERT INTO events VALUES (?, ?)", [(event.event_id, event_to_json(event)) for event in events]
    )
    _write_counter(connection, "event_id", events[-1].event_id)
    connection.execute(
        "DELETE FROM events WHERE event_id <="
        " (SELECT event_id FROM events ORDER BY event_id DESC LIMIT 1 OFFSET ?)",
        (history,),
    )
    return events


def record(connection: sqlite3.Connection, instance_id: str) -> InstanceRecord | None:
    rows = connection.execute("SELECT instance_id, body FROM records WHERE instance_id = ?", (instance_id,))
    return next(iter(readable_records(rows)), None)


def records(connection: sqlite3.Connection) -> list[InstanceRecord]:
    return readable_records(connection.execute("SELECT instance_id, body FROM records ORDER BY instance_id"))


def events_since(connection: sqlite3.Connection, event_id: int, limit: int) -> list[Event]:
    rows = connection.execute(
        "SELECT body FROM events WHERE event_id > ? ORDER BY event_id LIMIT ?", (event_id, limit)
    )
    return readable_events(body for (body,) in rows)


def ports(connection: sqlite3.Connection) -> list[PortHold]:
    rows = connection.execute("SELECT node, port, instance_id FROM ports ORDER BY node, port")
    return [PortHold(*row) for row in rows]


def usage(connection: sqlite3.Connection) -> list[Usage]:
    return [Usage(*row) for row in connection.execute("SELECT * FROM usage ORDER BY key_id, model")]


def claim(connection: sqlite3.Connection, wanted: Claim, now: float, ttl_s: float) -> Claim:
    with Transaction(connection):
        connection.execute("DELETE FROM idempotency WHERE expires_at <= ?", (now,))
        row = connection.execute(
            "SELECT instance_id, fingerprint FROM idempotency WHERE key = ?", (wanted.key,)
        ).fetchone()
        if row is not None:
            return Claim(wanted.key, row[0], row[1], False)
        connection.execute(
            "INSERT INTO idempotency VALUES (?, ?, ?, ?)",
            (wanted.key, wanted.instance_id, wanted.fingerprint, now + ttl_s),
        )
    return wanted


def forget_key(connection: sqlite3.Connection, key: str, instance_id: str) -> None:
    connection.execute("DELETE FROM idempotency WHERE key = ? AND instance_id = ?", (key, instance_id))


def next_fence(connection: sqlite3.Connection) -> int:
    with Transaction(connection):
        fence = _read_counter(connection, "fence") + 1
        _write_counter(connection, "fence", fence)
    return fence


def last_fence(connection: sqlite3.Connection) -> int:
    return _read_counter(connection, "fence")


def last_event_id(connection: sqlite3.Connection) -> int:
    return _read_counter(connection, "event_id")


def _read_counter(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    value: int = 0 if row is None else row[0]
    return value


def _write_counter(connection: sqlite3.Connection, name: str, value: int) -> None:
    connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))
