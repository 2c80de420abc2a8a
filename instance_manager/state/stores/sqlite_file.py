"""The SQLite file itself: identified as ours, readable by its owner only, checked, migrated, rescued.

A damaged file is moved aside, never deleted, and a new one created with all rows that can still be read.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path

from instance_manager.state.stores.errors import StoreUnavailable
from instance_manager.state.stores.sqlite_identity import identify, wal_path
from instance_manager.state.stores.sqlite_rescue import first_unreadable, rescue, text_of
from instance_manager.state.stores.sqlite_schema import APPLICATION_ID, MIGRATIONS, TABLES

logger = logging.getLogger("berth.state")

CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Damaged(sqlite3.DatabaseError):
    """The file is ours but damaged."""

    def __init__(self, finding: str) -> None:
        super().__init__(finding)
        self.sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether the error means that the file's content is damaged (rather than, say, a full disk)."""
    if str(error).startswith("no such table"):
        return True
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in CORRUPT


def open_database(path: Path, *, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection to the database at `path`, migrated, in WAL mode; the file has mode 0600.

    A damaged file is moved aside and replaced by one with all readable rows. Raises StateNotOurs for a file
    that was never ours, and StoreUnavailable if none can be made or a newer Berth wrote it.
    """
    try:
        identify(path)
        try:
            return _connect(path, busy_timeout_s)
        except sqlite3.DatabaseError as exc:
            if not is_corrupt(exc):
                raise
            return rebuild(path, str(exc), busy_timeout_s=busy_timeout_s)
    except (sqlite3.Error, OSError) as exc:
        raise StoreUnavailable(f"can't open the state in {path} (see STATE_URL): {exc}") from exc


def rebuild(path: Path, reason: str, *, busy_timeout_s: float) -> sqlite3.Connection:
    """Move the damaged database at `path` aside; returns a new one with the readable rows.

    Raises sqlite3.Error and OSError.
    """
    moved_to = move_aside(path)
    connection = _connect(path, busy_timeout_s)
    try:
        num_records = rescue(moved_to, connection)
    except (sqlite3.Error, OSError):  # nothing can be read, or there is no space for a copy
        num_records = 0
    logger.error(
        "the state in %s is damaged (%s): moved to %s, and rebuilt with %d readable records",
        path,
        " ".join(reason.split())[:300],
        moved_to,
        num_records,
    )
    return connection


def move_aside(path: Path) -> Path:
    """Rename an unusable database and its log; returns the new name."""
    base = f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"
    target, number = path.with_name(base), 1
    while target.exists() or wal_path(target).exists():
        number += 1
        target = path.with_name(f"{base}-{number}")
    for suffix in ("", "-wal", "-shm", "-journal"):  # a new database must not find the old log
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(target.with_name(target.name + suffix))
    return target


def _connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Created here, not by SQLite, so that others can never read it; -wal and -shm inherit its mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    is_new = path.stat().st_size == 0
    if is_new and wal_path(path).exists() and wal_path(path).stat().st_size:
        raise Damaged("it is empty, but its log isn't")  # SQLite would delete the log
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
    try:
        connection.text_factory = text_of
        if is_new:  # before a log exists: the mark must be in the file itself
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        # NORMAL in WAL mode: an acknowledged write survives our own death; a power cut may lose the last
        # writes, but never damages the database.
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
        finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if finding != "ok":
            raise Damaged(finding)
        _migrate(connection, path)
        if finding := first_unreadable(connection):
            raise Damaged(finding)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date atomically. Raises Damaged if it matches no version."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StoreUnavailable(
            f"the state in {path} has schema {version}, and this Berth supports {len(MIGRATIONS)} at most: a "
            "newer Berth wrote it; run that version, or give this one a STATE_DIR of its own"
        )
    mark: int = connection.execute("PRAGMA application_id").fetchone()[0]
    created = _created_tables(connection)
    if version < 0 or (version == 0 and TABLES.keys() & created.keys()):
        raise Damaged(f"schema {version} has tables already")
    if version != len(MIGRATIONS) or mark != APPLICATION_ID:
        connection.execute("BEGIN IMMEDIATE")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
        created = _created_tables(connection)
    for name, statement in TABLES.items():
        if created.get(name) != statement:
            raise Damaged(
                f"the table {name} is {'not the one Berth creates' if name in created else 'missing'}"
            )


def _created_tables(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    return dict(rows.fetchall())
