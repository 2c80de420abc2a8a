"""The SQLite file itself: made readable for its owner alone, checked, migrated, moved aside when corrupt."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path

from instance_manager.stores.errors import StoreUnavailable

logger = logging.getLogger("berth.state")

# One entry per version of the schema: what makes it of the one before. Entries are never edited once
# released; a new one is added. PRAGMA user_version counts those a file has seen.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE records (instance_id TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL)",
        "CREATE TABLE events (event_id INTEGER PRIMARY KEY, body TEXT NOT NULL)",
        "CREATE TABLE ports (node TEXT, port INTEGER, instance_id TEXT NOT NULL, PRIMARY KEY (node, port))",
        """CREATE TABLE idempotency (
            key TEXT PRIMARY KEY, instance_id TEXT NOT NULL, fingerprint TEXT NOT NULL,
            expires_at REAL NOT NULL
        )""",
        """CREATE TABLE usage (
            key_id TEXT, model TEXT, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL, PRIMARY KEY (key_id, model)
        )""",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    ),
)

CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether the error says that the file's content is broken (and not, say, that the disk is full)."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in CORRUPT


def open_database(path: Path, *, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection to the database at `path`, migrated, in WAL mode; the file has mode 0600.

    A corrupt file is moved aside and a new one made. Raises StoreUnavailable where that can't be done, or
    where a newer Berth has written the file.
    """
    try:
        try:
            return _connect(path, busy_timeout_s)
        except sqlite3.DatabaseError as exc:
            if not is_corrupt(exc):
                raise
            moved_to = move_aside(path)
            logger.error("the state in %s is corrupt (%s): kept as %s, begun anew", path, exc, moved_to)
            return _connect(path, busy_timeout_s)
    except (sqlite3.Error, OSError) as exc:
        raise StoreUnavailable(f"can't open the state in {path}: {exc}") from exc


def move_aside(path: Path) -> Path:
    """Rename a database that is of no use any more, with its log; returns its new name."""
    base = f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"
    target, number = path.with_name(base), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{base}-{number}")
    path.rename(target)
    for suffix in ("-wal", "-shm"):  # a new database must not find the old one's log
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(target.with_name(target.name + suffix))
    return target


def _connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Made by us, not by SQLite, so that it never is readable for others; -wal and -shm take its mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
    try:
        # NORMAL in WAL mode: an acknowledged write survives our own death; a power cut may take the last
        # ones, and never the database.
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
        finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if finding != "ok":
            error = sqlite3.DatabaseError(finding)
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date, all at once or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        connection.execute("ROLLBACK")
        raise StoreUnavailable(
            f"the state in {path} has schema {version}, and this Berth knows {len(MIGRATIONS)}: a newer "
            "Berth wrote it; run that one, or give this one a STATE_DIR of its own"
        )
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    connection.execute("COMMIT")
