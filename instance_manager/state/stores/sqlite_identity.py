"""Whether a file is one of our databases: checked before it is opened, locked or changed.

Any other file is left untouched, including its times and the files beside it. Ours have a mark in the header;
those of earlier versions have none and are identified by their tables; damaged ones by their readable
parts, or by the lock beside them. Blocks for reads of at most a few MiB.
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
_MARK_AT = 68  # the application id: four bytes, big-endian
_HEADER_BYTES = 100
_SEARCHED_BYTES = 4 * 2**20  # of a damaged file, for our schema, which is on the first page
# A row of the schema as SQLite stores it: dumps and sources have spaces between these words.
_SCHEMA_ROW = re.compile(rb"tablerecordsrecords.{1,4}CREATE TABLE records \(instance_id", re.DOTALL)


class Identity(Enum):
    """What is at a path."""

    NOTHING = auto()  # no file, or an empty one
    OURS = auto()  # whole or damaged


def lock_path(path: Path) -> Path:
    """The lock of the database at `path`."""
    return path.with_name(path.name + ".lock")


def wal_path(path: Path) -> Path:
    """SQLite's log of the database at `path`."""
    return path.with_name(path.name + "-wal")


def has_mark(path: Path) -> bool:
    """Whether its header has our mark, or none as in earlier versions. Raises OSError."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    return header.startswith(_MAGIC) and _mark_in(header) in (0, APPLICATION_ID)


def _mark_in(header: bytes) -> int:
    return int.from_bytes(header[_MARK_AT : _MARK_AT + 4], "big")


def identify(path: Path) -> Identity:
    """What is at the path, following links. Raises StateNotOurs, and OSError if it can't be read."""
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    if found is not None and not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise _refusal(path, f"is {kind}")
    if found is None or found.st_size == 0:
        return Identity.OURS if _has_evidence(path) else Identity.NOTHING
    problem = _problem_of(path)
    if problem is not None:
        raise _refusal(path, problem)
    return Identity.OURS


def _refusal(path: Path, problem: str) -> StateNotOurs:
    return StateNotOurs(
        f"STATE_URL names {path}, which {problem} and was not created by Berth: it is left untouched. Name a "
        "file that doesn't exist yet, such as STATE_URL=sqlite:///berth.db, or move that one away"
    )


def _problem_of(path: Path) -> str | None:
    """What it is instead, if it isn't ours."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if not header.startswith(_MAGIC):
        return None if _has_evidence(path) else "is not a database"
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
    """The statements that created a database's tables. Leaves no trace: no log is read or created."""
    url = f"file:{quote(str(path))}?mode=ro&immutable=1"
    with closing(sqlite3.connect(url, uri=True)) as connection:
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")
        return {str(sql) for (sql,) in rows}


def _has_evidence(path: Path) -> bool:
    """Whether an unreadable file was ours: it contains our schema, or the lock beside it names it.

    An empty file counts as damaged only if it has a log.
    """
    for each in (path, wal_path(path)):
        try:
            with each.open("rb") as file:
                if _SCHEMA_ROW.search(file.read(_SEARCHED_BYTES)):
                    return True
        except FileNotFoundError:
            continue
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    is_empty = not found.st_size and not (wal_path(path).exists() and wal_path(path).stat().st_size)
    return not is_empty and found.st_ino == signed_inode(lock_path(path))
