"""Whether a file is a database of ours: told before anything of it is opened, locked or changed.

A file that never was ours is left as it is, to its times and its neighbours. Ours are told by a mark in the
header; those of earlier versions, without one, by their tables; a damaged one by what can still be read of
it, or by the lock that we have left beside it. Blocks for reads of at most a few MiB.
"""

from __future__ import annotations

import re
import sqlite3
import stat
from contextlib import closing
from enum import Enum, auto
from pathlib import Path
from urllib.parse import quote

from instance_manager.state.stores.errors import StateNotOurs
from instance_manager.state.stores.lock import signed_inode
from instance_manager.state.stores.sqlite_schema import APPLICATION_ID, TABLES

_MAGIC = b"SQLite format 3\0"
_MARK_AT = 68  # the application's id, four bytes, the first one the highest
_HEADER_BYTES = 100
_LOOKED_THROUGH_BYTES = 4 * 2**20  # of a damaged file, for our schema: it stands on the first page
# A row of the schema as SQLite stores it: no dump and no source has these words without space between.
_SCHEMA_ROW = re.compile(rb"tablerecordsrecords.{1,4}CREATE TABLE records \(instance_id", re.DOTALL)


class Identity(Enum):
    """What a path leads to."""

    NOTHING = auto()  # no file, or an empty one
    OURS = auto()  # whole or damaged


def lock_path(path: Path) -> Path:
    """The lock of the database at `path`."""
    return path.with_name(path.name + ".lock")


def wal_path(path: Path) -> Path:
    """SQLite's log of the database at `path`."""
    return path.with_name(path.name + "-wal")


def has_mark(path: Path) -> bool:
    """Whether its header is one of ours, or the unmarked one of an earlier version. Raises OSError."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    return header.startswith(_MAGIC) and _mark_in(header) in (0, APPLICATION_ID)


def _mark_in(header: bytes) -> int:
    return int.from_bytes(header[_MARK_AT : _MARK_AT + 4], "big")


def identify(path: Path) -> Identity:
    """What is there, links followed. Raises StateNotOurs, and OSError where it can't be read."""
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    if found is not None and not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no file"
        raise _refusal(path, f"is {kind}")
    if found is None or found.st_size == 0:
        return Identity.OURS if _has_evidence(path) else Identity.NOTHING
    problem = _problem_of(path)
    if problem is not None:
        raise _refusal(path, problem)
    return Identity.OURS


def _refusal(path: Path, problem: str) -> StateNotOurs:
    return StateNotOurs(
        f"STATE_URL names {path}, which {problem} and was not made by Berth: it is left as it is. Name a "
        "file that isn't there yet, such as STATE_URL=sqlite:///berth.db, or move that one away"
    )


def _problem_of(path: Path) -> str | None:
    """What it is, where it isn't ours."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if not header.startswith(_MAGIC):
        return None if _has_evidence(path) else "is no database"
    mark = _mark_in(header)
    if mark == APPLICATION_ID:
        return None
    if mark:
        return "is another program's database"
    try:
        tables = _tables_of(path)
    except sqlite3.Error:
        return None if _has_evidence(path) else "is a damaged database"
    if tables & set(TABLES.values()):
        return None
    if tables:
        return "is another program's database"
    return None if _has_evidence(path) else "is another program's database"


def _tables_of(path: Path) -> set[str]:
    """How the tables of a database were made. By a look that leaves no trace: no log is read or made."""
    url = f"file:{quote(str(path))}?mode=ro&immutable=1"
    with closing(sqlite3.connect(url, uri=True)) as connection:
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")
        return {str(sql) for (sql,) in rows}


def _has_evidence(path: Path) -> bool:
    """Whether a file that can't be read was ours: by our schema in it, or our lock beside it that names it.

    An empty file is damage only where there is a log to go with it.
    """
    for each in (path, wal_path(path)):
        try:
            with each.open("rb") as file:
                if _SCHEMA_ROW.search(file.read(_LOOKED_THROUGH_BYTES)):
                    return True
        except FileNotFoundError:
            continue
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    is_blank = not found.st_size and not (wal_path(path).exists() and wal_path(path).stat().st_size)
    return not is_blank and found.st_ino == signed_inode(lock_path(path))
