"""STATE_URL names a file that Berth didn't create: the start is refused, and the file left untouched."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from instance_manager.state.stores import open_store
from instance_manager.state.stores.errors import StateNotOurs
from instance_manager.state.stores.sqlite_schema import APPLICATION_ID, MIGRATIONS
from tests.instance_manager.stores.conftest import a_record


def a_photo(path: Path) -> None:
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + os.urandom(20_000))


def a_note(path: Path) -> None:
    path.write_text("Milk, eggs, a second GPU.\n")


def one_byte(path: Path) -> None:
    path.write_bytes(b"\0")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(8192))


def another_programs_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE events (event_id INTEGER PRIMARY KEY, body TEXT, place TEXT)")
        database.execute("INSERT INTO events VALUES (1, 'concert', 'park')")


def another_programs_database_in_wal_mode(path: Path) -> None:
    another_programs_database(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL").fetchone()


def another_programs_marked_database(path: Path) -> None:
    another_programs_database(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA application_id = 252006673")


def an_empty_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 7")


def another_programs_damaged_database(path: Path) -> None:
    another_programs_database(path)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3000)


def a_truncated_database(path: Path) -> None:
    another_programs_database(path)
    with path.open("r+b") as file:
        file.truncate(70)


def a_dump_of_ours(path: Path) -> None:
    path.write_text("PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n" + ";\n".join(MIGRATIONS[0]))


STRANGERS = [
    a_photo,
    a_note,
    one_byte,
    zeros,
    another_programs_database,
    another_programs_database_in_wal_mode,
    another_programs_marked_database,
    an_empty_database,
    another_programs_damaged_database,
    a_truncated_database,
    a_dump_of_ours,
]


def look(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Everything that could change in a folder and its files."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        stat = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_mode, content)
    return found


@pytest.mark.parametrize("link", [False, True], ids=["itself", "by a link"])
@pytest.mark.parametrize("make", STRANGERS)
async def test_a_foreign_file_is_refused_and_untouched(
    make: Callable[[Path], None], link: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    make(folder / "file")
    named = folder / "file"
    if link:
        named = tmp_path / "link"
        named.symlink_to(folder / "file")
    before = look(folder)
    with pytest.raises(StateNotOurs) as refused:
        await open_store(f"sqlite:///{named}", tmp_path / "state")
    message = str(refused.value)
    assert "STATE_URL" in message and str(folder / "file") in message and "\n" not in message
    assert look(folder) == before


@pytest.mark.parametrize("what", ["directory", "fifo", "device"])
async def test_a_path_that_is_not_a_file_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)  # to open it would wait for ever
    else:
        path = Path("/dev/null")
    with pytest.raises(StateNotOurs, match="STATE_URL"):
        await open_store(f"sqlite:///{path}", tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == (["theirs"] if what != "device" else [])


async def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    """From `touch`, or from mounting a single file: there is nothing to lose."""
    (tmp_path / "made.db").touch()
    async with await open_store("sqlite:///made.db", tmp_path) as store:
        await store.put(a_record(), 0)


async def test_a_link_to_our_database_is_followed(tmp_path: Path) -> None:
    async with await open_store("sqlite:///real.db", tmp_path) as store:
        record = await store.put(a_record(), 0)
    (tmp_path / "link.db").symlink_to("real.db")
    async with await open_store("sqlite:///link.db", tmp_path) as store:
        assert await store.records() == [record]
        assert not (tmp_path / "link.db-wal").exists()


async def test_our_databases_are_marked(tmp_path: Path) -> None:
    async with await open_store("sqlite:///berth.db", tmp_path):
        header = (tmp_path / "berth.db").read_bytes()[:100]  # also before anything is moved out of the log
        assert int.from_bytes(header[68:72], "big") == APPLICATION_ID


@pytest.mark.parametrize("is_in_the_log", [False, True])
async def test_unmarked_databases_of_earlier_versions_are_ours(is_in_the_log: bool, tmp_path: Path) -> None:
    """Identified by their tables, even if those are still in the log of a killed process."""
    path, record = tmp_path / "berth.db", a_record(version=1)
    live = sqlite3.connect(path, isolation_level=None)
    live.execute("PRAGMA journal_mode = WAL").fetchone()
    for statement in MIGRATIONS[0]:
        live.execute(statement)
    live.execute("PRAGMA user_version = 1")
    live.execute("INSERT INTO records VALUES (?, 1, ?)", ("one", record.to_json()))
    folder = tmp_path
    if is_in_the_log:
        folder = tmp_path / "killed"
        folder.mkdir()
        for part in ("berth.db", "berth.db-wal"):
            (folder / part).write_bytes((tmp_path / part).read_bytes())
    live.close()
    async with await open_store("sqlite:///berth.db", folder) as store:
        assert await store.records() == [record]
    assert not list(folder.glob("*.corrupt-*"))
    header = (folder / "berth.db").read_bytes()[:100]
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
