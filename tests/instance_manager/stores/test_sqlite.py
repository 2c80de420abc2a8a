"""The file under the default store: killed, corrupt, full, locked, of another schema."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from instance_manager.state.stores import NewEvent, Usage, open_store, owner_id
from instance_manager.state.stores.errors import StoreInUse, StoreUnavailable
from instance_manager.state.stores.sqlite_schema import MIGRATIONS
from tests.instance_manager.stores.conftest import a_record

URL = "sqlite:///berth.db"

# Writes until it is killed; prints each number once the store has acknowledged it.
WRITER = """
import asyncio, sys
from pathlib import Path
from instance_manager.state.stores import NewEvent, open_store
from tests.instance_manager.stores.conftest import a_record

async def main() -> None:
    store = await open_store("sqlite:///berth.db", Path(sys.argv[1]))
    found = await store.get("one")
    version = 0 if found is None else found.version
    while True:
        event = NewEvent("instance.state", "one", 1.0, {"pid": version})
        version = (await store.put(a_record(pid=version), version, events=[event])).version
        print(version, flush=True)

asyncio.run(main())
"""


async def test_killed_while_writing_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    acknowledged = 0
    for lines in (20, 57, 91):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            try:
                for _ in range(lines):
                    acknowledged = int(writer.stdout.readline())
            finally:
                writer.send_signal(signal.SIGKILL)
            for line in writer.stdout.read().splitlines(keepends=True):  # printed before it died
                acknowledged = int(line) if line.endswith("\n") else acknowledged
        async with await open_store(URL, tmp_path) as store:
            record = await store.get("one")
            assert record is not None
            assert acknowledged <= record.version <= acknowledged + 1  # the last may not have been printed
            assert await store.last_event_id() == record.version  # a record and its event: both or neither
            events = await store.events_since(0)
            assert [event.event_id for event in events] == list(range(1, record.version + 1))


async def test_everything_is_there_when_opened_again(tmp_path: Path) -> None:
    async with await open_store(URL, tmp_path) as store:
        lease = await store.acquire_lease("a", 30)
        record = await store.put(a_record(), 0, events=[NewEvent("x", "one", 1.0)])
        await store.add_usage([Usage("k", "m", 1, 2, 3)])
        await store.claim_key("key", "one", fingerprint="f", ttl_s=60)
    async with await open_store(URL, tmp_path) as store:
        assert await store.records() == [record]
        assert await store.usage() == [Usage("k", "m", 1, 2, 3)]
        assert [event.event_id for event in await store.append([NewEvent("x", "one", 1.0)])] == [2]
        assert not (await store.claim_key("key", "two", fingerprint="f", ttl_s=60)).is_new
        assert (await store.acquire_lease("a", 30)).fence > lease.fence


async def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    (tmp_path / "berth.db").touch(mode=0o644)
    async with await open_store(URL, tmp_path) as store:
        await store.put(a_record(), 0)
        files = list(tmp_path.glob("berth.db*"))
        assert {path.name for path in files} == {"berth.db", "berth.db-wal", "berth.db-shm", "berth.db.lock"}
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


async def test_two_processes_in_one_directory(tmp_path: Path) -> None:
    async with await open_store(URL, tmp_path):
        with pytest.raises(StoreInUse, match=r"another Berth process \(pid \d+\) uses"):
            await open_store(URL, tmp_path)
    async with await open_store(URL, tmp_path):
        pass


async def test_a_file_that_turns_corrupt_while_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with await open_store(URL, tmp_path) as store:
        for number in range(60):  # more than SQLite keeps in memory
            await store.put(a_record(f"i{number}", extra={"large": "x" * 100_000}), 0)
        with (tmp_path / "berth.db").open("r+b") as file:
            size = file.seek(0, 2)
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        with caplog.at_level(logging.ERROR, "berth.state"), pytest.raises(StoreUnavailable):
            await store.records()
        assert "is damaged" in caplog.text
        assert len(await store.records()) < 60  # a new one, with what could still be read
        await store.put(a_record(), 0)


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """Like a full disk: a file can't grow beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    async with await open_store(URL, tmp_path) as store:
        await store.put(a_record(), 0)
        written = 0
        with files_no_larger_than((tmp_path / "berth.db-wal").stat().st_size + 50_000):
            with pytest.raises(StoreUnavailable, match="can't be used now"):
                for written in range(1000):
                    await store.put(a_record(f"i{written}"), 0, events=[NewEvent("x", "one", 1.0)])
            assert len(await store.records()) == written + 1  # reading goes on
        await store.put(a_record(f"i{written}"), 0)
        assert len(await store.records()) == written + 2
        assert await store.last_event_id() == written


async def test_it_starts_on_a_full_disk_with_the_readable_state(tmp_path: Path) -> None:
    """So that engines of a killed process are found, not orphaned until there is space."""
    killed = tmp_path / "killed"
    killed.mkdir()
    async with await open_store(URL, tmp_path) as store:
        record = await store.put(a_record(), 0)
        for path in tmp_path.glob("berth.db*"):
            (killed / path.name).write_bytes(path.read_bytes())
    size = (killed / "berth.db-wal").stat().st_size
    with files_no_larger_than(max(size, 32_768)):
        async with await open_store(URL, killed) as store:
            assert (await store.acquire_lease("a", 30)).fence == 1
            assert await store.records() == [record]
            with pytest.raises(StoreUnavailable):
                for number in range(1000):
                    await store.put(a_record(f"i{number}"), 0)


async def test_a_directory_that_cannot_be_written() -> None:
    with pytest.raises(StoreUnavailable, match="/proc/berth"):
        await open_store(URL, Path("/proc/berth"))
    with pytest.raises(StoreUnavailable, match="/proc/berth"):
        owner_id(Path("/proc/berth"))


async def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    async with await open_store(URL, tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "berth.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreUnavailable, match="newer Berth wrote it"):
        await open_store(URL, tmp_path)
    assert not list(tmp_path.glob("*.corrupt-*"))


async def test_the_event_loop_continues_while_the_file_is_locked(tmp_path: Path) -> None:
    async with await open_store(URL, tmp_path) as store:
        blocker = sqlite3.connect(tmp_path / "berth.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        write = asyncio.create_task(store.put(a_record(), 0))
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert not write.done()
        blocker.execute("ROLLBACK")
        blocker.close()
        assert (await write).version == 1


def test_a_node_keeps_its_name(tmp_path: Path) -> None:
    name = owner_id(tmp_path / "a")
    assert owner_id(tmp_path / "a") == name
    assert owner_id(tmp_path / "b") != name
    (tmp_path / "a" / "berth-id").write_text("")
    assert owner_id(tmp_path / "a") == owner_id(tmp_path / "a") != ""


async def test_a_record_that_cannot_be_read_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with await open_store(URL, tmp_path) as store:
        kept = await store.put(a_record("two"), 0)
        await store.put(a_record("one"), 0)
    connection = sqlite3.connect(tmp_path / "berth.db")
    with connection:
        connection.execute("UPDATE records SET body = '{}' WHERE instance_id = 'one'")
    connection.close()
    with caplog.at_level(logging.ERROR, "berth.state"):
        async with await open_store(URL, tmp_path) as store:
            assert await store.records() == [kept]
    assert "instance=one" in caplog.text
