"""Our own database, damaged: moved aside, logged in one line, and rebuilt with all readable rows."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from instance_manager.state.stores import Change, ChangeKind, NewEvent, PortHold, Usage, Write, open_store
from instance_manager.state.stores.errors import LeaseLost, StateNotOurs, StoreUnavailable
from instance_manager.state.stores.sqlite import SqliteStore
from tests.instance_manager.stores.conftest import a_record

URL = "sqlite:///berth.db"
MANY = 200


async def fill(folder: Path) -> None:
    """A typical state; more than one page of each table."""
    async with await open_store(URL, folder) as store:
        for number in range(MANY):
            one = await store.put(a_record(f"i{number:03}"), 0, events=[NewEvent("x", "i", 1.0)])
            await store.commit(Write(hold=PortHold("here", 9000 + number, one.instance_id)))
        await store.add_usage([Usage("key", "model", 1, 2, 3)])
        await store.claim_key("key", "i000", fingerprint="f", ttl_s=3600)


def write_at(offset: int, data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return damage


def cut_to(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def say(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            for statement in statements:
                database.execute(statement)

    return damage


def written_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))


# The damage, and how many records are at least read in spite of it.
DAMAGES = {
    "header of zeros": (write_at(0, bytes(100)), 0),
    "first page of zeros": (write_at(0, bytes(4096)), 0),
    "no magic": (write_at(0, b"x" * 16), 0),
    "another mark in the header": (write_at(0, b"\xff" * 60), 0),
    "text": (lambda path: path.write_bytes(b"this is no database, " * 500), 0),
    "a page of the middle": (written_in_the_middle, 50),
    "the second page": (write_at(4096, b"\xff" * 8192), 0),
    "cut in two": (cut_to(40_960), 0),
    "cut to 50 bytes": (cut_to(50), 0),
    "cut to one page": (cut_to(4096), 0),
    "no records": (say("DROP TABLE records"), 0),
    "no ports": (say("DROP TABLE ports"), MANY),
    "no counters": (say("DROP TABLE counters"), MANY),
    "no event number": (say("DELETE FROM counters"), MANY),
    "another table": (say("DROP TABLE usage", "CREATE TABLE usage (a)"), MANY),
    "schema of no version": (say("PRAGMA user_version = 0"), MANY),
    "a negative schema": (say("PRAGMA user_version = -3"), MANY),
    "a record of no JSON": (say("UPDATE records SET body = '{' WHERE instance_id = 'i007'"), MANY - 1),
    "a record of bytes": (say("UPDATE records SET body = x'ff00' WHERE instance_id = 'i007'"), MANY - 1),
    "a record of no text": (
        say("UPDATE records SET body = CAST(x'7bff7d' AS TEXT) WHERE instance_id = 'i007'"),
        MANY - 1,
    ),
    "a record of a list": (say("UPDATE records SET body = '[]' WHERE instance_id = 'i007'"), MANY - 1),
    "a record of deep lists": (
        say("UPDATE records SET body = printf('%.*c', 100000, '[') WHERE instance_id = 'i007'"),
        MANY - 1,
    ),
    "another's record": (
        say("UPDATE records SET body = (SELECT body FROM records LIMIT 1) WHERE instance_id = 'i007'"),
        MANY - 1,
    ),
    "a version of text": (say("UPDATE records SET version = 'x' WHERE instance_id = 'i007'"), MANY - 1),
    "an event of no JSON": (say("UPDATE events SET body = 'x' WHERE event_id = 7"), MANY),
    "a port of text": (say("UPDATE ports SET port = 'x' WHERE port = 9007"), MANY),
    "usage of text": (say("UPDATE usage SET requests = 'many'"), MANY),
    "a counter of text": (say("UPDATE counters SET value = 'x'"), MANY),
}


@pytest.mark.parametrize("what", DAMAGES)
async def test_a_damaged_database_is_moved_aside(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, num_readable = DAMAGES[what]
    path = tmp_path / "berth.db"
    await fill(tmp_path)
    damage(path)
    damaged = path.read_bytes()
    with caplog.at_level(logging.DEBUG, "berth.state"):
        async with await open_store(URL, tmp_path) as store:
            found = await store.records()
            assert len(found) >= num_readable
            assert all(record.spec == a_record().spec for record in found)
            await store.put(a_record("new"), 0, events=[NewEvent("x", "new", 1.0)])
            await store.usage()
            await store.ports()
            assert len(await store.events_since(0)) <= MANY + 1
    (line,) = [record.getMessage() for record in caplog.records]
    (aside,) = [one for one in tmp_path.glob("berth.db.corrupt-*") if not one.name.endswith(("-wal", "-shm"))]
    assert "\n" not in line and str(path) in line and str(aside) in line, line
    assert aside.read_bytes() == damaged
    caplog.clear()
    async with await open_store(URL, tmp_path) as store:
        assert len(await store.records()) == len(found) + 1
    assert not caplog.records


@pytest.mark.parametrize("field", ["port", "pid", "spec", "command", "extra", "created_at", "token"])
async def test_a_record_with_a_field_of_another_kind_is_damage(field: str, tmp_path: Path) -> None:
    """It would cause a traceback at the start, or later."""
    async with await open_store(URL, tmp_path) as store:
        record = await store.put(a_record(), 0)
    body = json.loads(record.to_json())
    body[field] = {"x": ["y"]} if field != "extra" else "x"
    say(f"UPDATE records SET body = '{json.dumps(body)}'")(tmp_path / "berth.db")  # noqa: S608
    async with await open_store(URL, tmp_path) as store:
        assert await store.records() == []


async def test_the_log_of_an_emptied_file_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite itself deletes the log beside an empty file."""
    store = await SqliteStore.open(tmp_path / "berth.db")
    await store.put(a_record(), 0)
    killed = tmp_path / "killed"
    killed.mkdir()
    log = (tmp_path / "berth.db-wal").read_bytes()
    (killed / "berth.db-wal").write_bytes(log)
    (killed / "berth.db").touch()
    await store.close()
    with caplog.at_level(logging.ERROR, "berth.state"):
        async with await open_store(URL, killed) as reopened:
            await reopened.put(a_record("new"), 0)
    (kept,) = killed.glob("*.corrupt-*-wal")
    assert kept.read_bytes() == log
    assert "is damaged" in caplog.text


def remove(*parts: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for part in parts:
            (folder / f"berth.db{part}").unlink()

    return damage


def replace_by_an_old_one(folder: Path) -> None:
    (folder / "old.db").write_bytes((folder / "berth.db").read_bytes())
    (folder / "old.db").replace(folder / "berth.db")


def replace_the_log(folder: Path) -> None:
    (folder / "other").write_bytes(b"x" * 5000)
    (folder / "other").replace(folder / "berth.db-wal")


LOSSES: dict[str, Callable[[Path], None]] = {
    "the log": remove("-wal"),
    "the log and its index": remove("-wal", "-shm"),
    "the index": remove("-shm"),
    "the database": remove(""),
    "all of it": remove("", "-wal", "-shm", ".lock"),
    "the lock": remove(".lock"),
    "replaced": replace_by_an_old_one,
    "the log replaced": replace_the_log,
    "emptied": lambda folder: os.truncate(folder / "berth.db", 0),
    "header overwritten": lambda folder: write_at(0, b"x" * 100)(folder / "berth.db"),
}


@pytest.mark.parametrize("what", LOSSES)
async def test_files_removed_while_open_are_restored(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with await open_store(URL, tmp_path) as store:
        for number in range(20):
            await store.put(a_record(f"i{number}"), 0, events=[NewEvent("x", "i", 1.0)])
        await store.add_usage([Usage("key", "model", 1, 2, 3)])
        changes = store.watch()
        await store.tend()
        LOSSES[what](tmp_path)
        with caplog.at_level(logging.DEBUG, "berth.state"):
            await store.tend()
            await store.tend()
        if what == "the lock":
            assert not caplog.records
        else:
            (line,) = [record.getMessage() for record in caplog.records]
            assert "while Berth runs" in line and "\n" not in line
            assert await anext(changes) == Change(ChangeKind.REBUILT)
        assert len(await store.records()) == 20
        await store.put(a_record("more"), 0)
        with pytest.raises(Exception, match="another Berth"):
            await SqliteStore.open(tmp_path / "berth.db")
    assert not list(tmp_path.glob("*.draft*"))
    async with await open_store(URL, tmp_path) as store:
        assert len(await store.records()) == 21
        assert await store.usage() == [Usage("key", "model", 1, 2, 3)]
        assert await store.last_event_id() == 20


async def test_a_removed_folder_is_created_again(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with await open_store(URL, folder) as store:
        await store.put(a_record(), 0)
        for one in folder.iterdir():
            one.unlink()
        folder.rmdir()
        await store.tend()
        await store.put(a_record("two"), 0)
    async with await open_store(URL, folder) as store:
        assert len(await store.records()) == 2


async def test_a_foreign_file_in_its_place_is_left_there(tmp_path: Path) -> None:
    path = tmp_path / "berth.db"
    async with await open_store(URL, tmp_path) as store:
        await store.put(a_record(), 0)
        path.unlink()
        (tmp_path / "berth.db-wal").unlink()
        (tmp_path / "berth.db.lock").unlink()
        path.write_bytes(b"a photo")
        with pytest.raises(StateNotOurs):
            await store.tend()
        assert path.read_bytes() == b"a photo"
        assert len(await store.records()) == 1
        path.unlink()
        await store.tend()
    async with await open_store(URL, tmp_path) as store:
        assert len(await store.records()) == 1


async def test_another_process_in_its_place_deposes(tmp_path: Path) -> None:
    first = await open_store(URL, tmp_path)
    for one in list(tmp_path.iterdir()):
        one.unlink()
    async with await open_store(URL, tmp_path) as second:
        with pytest.raises(LeaseLost, match="another Berth"):
            await first.tend()
        await second.put(a_record("second"), 0)
        await first.close()
        await second.tend()
        assert [record.instance_id for record in await second.records()] == ["second"]


async def test_tables_dropped_while_it_is_open_come_back(tmp_path: Path) -> None:
    async with await open_store(URL, tmp_path) as store:
        await store.put(a_record(), 0)
        say("DROP TABLE usage")(tmp_path / "berth.db")
        with pytest.raises(StoreUnavailable):
            await store.add_usage([Usage("key", "model", 1, 2, 3)])
        await store.add_usage([Usage("key", "model", 1, 2, 3)])
        assert len(await store.records()) == 1
