"""Detects and restores files of an open database that were removed, replaced or emptied.

An open connection keeps the files that it opened, whatever happens to their names.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from instance_manager.state.stores.sqlite_file import Damaged, move_aside
from instance_manager.state.stores.sqlite_identity import has_mark, identify

FileId = tuple[int, int]  # device and inode

_PARTS = ("", "-wal", "-shm")


def file_ids(path: Path) -> dict[Path, FileId]:
    """The database's existing files."""
    found = {}
    for part in _PARTS:
        one = path.with_name(path.name + part)
        with suppress(OSError):
            found[one] = _id_of(one)
    return found


def find_loss(path: Path, seen: Mapping[Path, FileId]) -> str | None:
    """What has happened to the files since; None if nothing has, or they can't be read now."""
    try:
        for one, identity in seen.items():
            if _id_of(one) != identity:
                return f"{one.name} was replaced"
        return None if has_mark(path) else f"{path.name} was overwritten"
    except FileNotFoundError as exc:
        return f"{Path(exc.filename).name} was removed"
    except OSError:
        return None


def put_back(connection: sqlite3.Connection, path: Path) -> Path | None:
    """Write the connection's data to `path` and close it; returns the new name of the file in its place.

    Data that can no longer be read is replaced by an empty database. Raises StateNotOurs if a foreign file is
    at `path`, sqlite3.Error and OSError; the connection then stays open.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(path.name + ".draft")
    try:
        is_whole = _copy(connection, draft)
        identify(path)
        kept_as = move_aside(path) if file_ids(path) else None
        if is_whole:
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    connection.close()
    return kept_as


def _copy(connection: sqlite3.Connection, draft: Path) -> bool:
    """Whether all data could be read."""
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as copy:
            connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # so that everything is in one file
            finding = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
            if finding != "ok":
                raise Damaged(finding)
    except sqlite3.DatabaseError as exc:
        if (getattr(exc, "sqlite_errorcode", 0) & 0xFF) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
            raise
        return False
    return True


def _id_of(path: Path) -> FileId:
    found = path.stat()
    return found.st_dev, found.st_ino
