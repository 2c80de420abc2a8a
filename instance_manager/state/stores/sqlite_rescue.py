"""Copies the readable rows of a damaged database of ours into a new one.

The damaged file is only read. Rows are read from both ends of a table, since an unreadable row hides those
behind it. Raises sqlite3.Error of the new database; those of the damaged one are suppressed.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from instance_manager.state.stores.records import UNREADABLE, InstanceRecord, event_from_json
from instance_manager.state.stores.sqlite_identity import wal_path
from instance_manager.state.stores.sqlite_schema import TABLES

_PAGE_BYTES = 4096

Row = tuple[Any, ...]


def text_of(stored: bytes) -> str:
    """A connection's text factory: invalid UTF-8 makes one row unreadable, not the whole table."""
    return stored.decode("utf-8", "replace")


def first_unreadable(connection: sqlite3.Connection) -> str | None:
    """The first row that can't be read, and why; None if all can."""
    for table in TABLES:
        for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608 - names of ours
            try:
                _CHECKS[table](row)
            except UNREADABLE as exc:
                what = f"the record of instance={row[0]}" if table == "records" else f"a row of {table}"
                return f"{what} can't be read: {exc!r:.200}"
    newest = connection.execute("SELECT max(event_id) FROM events").fetchone()[0]
    counted = connection.execute("SELECT value FROM counters WHERE name = 'event_id'").fetchone()
    if (newest or 0) > (counted[0] if counted else 0):
        return "the id of the last event is lost"
    return None


def rescue(damaged: Path, connection: sqlite3.Connection) -> int:
    """Copy every readable row into the new database; returns the number of instance records copied."""
    try:
        with _reading(damaged) as source:
            source.text_factory = text_of
            connection.execute("BEGIN IMMEDIATE")
            for table in TABLES:
                _copy(source, connection, table)
            connection.execute(
                "INSERT INTO counters SELECT 'event_id', ifnull(max(event_id), 0) FROM events WHERE true"
                " ON CONFLICT DO UPDATE SET value = max(value, excluded.value)"
            )
            connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    found: int = connection.execute("SELECT count(*) FROM records").fetchone()[0]
    return found


@contextmanager
def _reading(damaged: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing. A copy is read for an empty file, whose log SQLite would delete."""
    if damaged.exists() and damaged.stat().st_size:
        with closing(sqlite3.connect(f"file:{quote(str(damaged))}?mode=ro", uri=True)) as source:
            yield source
        return
    with TemporaryDirectory(dir=damaged.parent, prefix=f"{damaged.name}.") as folder:
        copy = Path(folder) / "copy"
        copy.write_bytes(bytes(_PAGE_BYTES))
        shutil.copyfile(wal_path(damaged), wal_path(copy))
        with closing(sqlite3.connect(copy)) as source:
            yield source


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> None:
    columns = [name for _, name, *_ in target.execute(f"PRAGMA table_info({table})")]
    places = ", ".join("?" * len(columns))
    for row in _readable_rows(source, table, ", ".join(columns)):
        target.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", row)  # noqa: S608 - as above


def _readable_rows(source: sqlite3.Connection, table: str, columns: str) -> Iterator[Row]:
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error):
            query = f"SELECT {columns} FROM {table} ORDER BY rowid {order}"  # noqa: S608 - as above
            for row in source.execute(query):
                with suppress(*UNREADABLE):
                    _CHECKS[table](row)
                    yield row
            return  # the whole table was read


def _check_record(row: Row) -> None:
    instance_id, version, body = row
    record = InstanceRecord.from_json(body)
    if record.instance_id != instance_id or record.version != version or type(version) is not int:
        raise ValueError("it belongs to another row")


def _check_event(row: Row) -> None:
    event_id, body = row
    if event_from_json(body).event_id != event_id:
        raise ValueError("it belongs to another row")


def _of_types(*kinds: type) -> Callable[[Row], None]:
    def check(row: Row) -> None:
        for value, kind in zip(row, kinds, strict=True):
            if not isinstance(value, kind):
                raise TypeError(f"{value!r:.50} is not a {kind.__name__}")

    return check


_CHECKS: dict[str, Callable[[Row], None]] = {
    "records": _check_record,
    "events": _check_event,
    "ports": _of_types(str, int, str),
    "idempotency": _of_types(str, str, str, float),
    "usage": _of_types(str, str, int, int, int),
    "counters": _of_types(str, int),
}
