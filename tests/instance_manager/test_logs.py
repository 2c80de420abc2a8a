"""Following a log file that another process writes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from instance_manager.process.logs import LogFile


@asynccontextmanager
async def followed(
    path: Path, *, max_bytes: int = 1_000_000, lines: int = 100
) -> AsyncIterator[tuple[LogFile, int]]:
    log = LogFile(path, max_bytes=max_bytes, ring_lines=lines)
    descriptor = await log.open_for_engine()
    task = asyncio.create_task(log.follow())
    try:
        yield log, descriptor
    finally:
        os.close(descriptor)
        log.finish()
        await task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "engine.log"


async def next_lines(log: LogFile, after: int, count: int) -> list[str]:
    found = []
    async for line in log.lines.follow(after):
        found.append(line)
        if len(found) == count:
            break
    return found


async def test_lines_arrive_as_they_are_written(path: Path) -> None:
    async with followed(path) as (log, descriptor):
        os.write(descriptor, b"one\ntw")
        assert await next_lines(log, 0, 1) == ["one"]
        os.write(descriptor, b"o\nthree")
        assert await next_lines(log, 1, 1) == ["two"]
    assert log.lines.tail(9) == [
        "one",
        "two",
        "three",
    ]  # the unfinished line comes once the writer is gone


async def test_only_new_output_is_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("from a previous run\n")
    async with followed(path) as (log, descriptor):
        os.write(descriptor, b"now\n")
    assert log.lines.tail(9) == ["now"]
    assert path.read_text() == "from a previous run\nnow\n"


async def test_invalid_bytes_and_progress_bars_make_readable_lines(path: Path) -> None:
    async with followed(path) as (log, descriptor):
        os.write(descriptor, b" 10%\r 50%\r100%\nbad \xff byte\r\n" + b"x" * 50_000 + b"\nend\n")
    first, second, long, end = log.lines.tail(9)
    assert (first, second, end) == ("100%", "bad � byte", "end")
    assert long == "x" * 8192


async def test_an_endless_line_is_cut(path: Path) -> None:
    async with followed(path) as (log, descriptor):
        os.write(descriptor, b"y" * 20_000)
        assert await next_lines(log, 0, 1) == ["y" * 8192]


async def test_rotation_keeps_one_backup_while_the_engine_keeps_writing(path: Path) -> None:
    async with followed(path, max_bytes=1000) as (log, descriptor):
        for number in range(5):
            os.write(descriptor, f"line {number} ".encode() + b"z" * 1200 + b"\n")
            assert len(await next_lines(log, number, 1)) == 1
            while path.stat().st_size:  # noqa: ASYNC110 - a file has no event to await
                await asyncio.sleep(0.01)
        os.write(descriptor, b"after\n")
    assert path.read_text() == "after\n"
    assert log.backup_path.read_text().startswith("line 4 ")
    assert [line[:6] for line in log.lines.tail(9)] == [f"line {n}" for n in range(5)] + ["after"]
    await log.remove()
    assert list(path.parent.iterdir()) == []
    await log.remove()


async def test_output_written_during_the_copy_is_not_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instance_manager.process import logs

    copy = logs._copy
    async with followed(path, max_bytes=100) as (log, descriptor):

        def slow_copy(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
            copy(source, target, num_bytes)
            os.write(descriptor, b"late\n")

        monkeypatch.setattr(logs, "_copy", slow_copy)
        os.write(descriptor, b"q" * 200 + b"\n")
        assert (await next_lines(log, 0, 2))[1] == "late"
    assert log.backup_path.read_text().endswith("q\nlate\n")


async def test_the_backup_of_a_flood_is_bounded(path: Path) -> None:
    async with followed(path, max_bytes=1000) as (log, descriptor):
        os.write(descriptor, b"first\n" + (b"f" * 99 + b"\n") * 1000 + b"last\n")
        while path.stat().st_size:  # noqa: ASYNC110 - a file has no event to await
            await asyncio.sleep(0.01)
        assert log.backup_path.stat().st_size == 2000
        assert log.backup_path.read_text().endswith("\nlast\n")


async def test_a_log_whose_backup_can_not_be_written_is_truncated_and_still_followed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(path, max_bytes=1000) as (log, descriptor):
        log.backup_path.mkdir()
        os.write(descriptor, b"g" * 2000 + b"\n")
        while path.stat().st_size:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        os.write(descriptor, b"after\n")
    assert log.lines.tail(9)[-1] == "after"
    assert "no backup of the log" in caplog.text


async def test_a_log_that_is_unreadable_for_a_while_is_read_later(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(path) as (log, descriptor):
        os.write(descriptor, b"one\n")
        assert await next_lines(log, 0, 1) == ["one"]
        moved = path.rename(path.with_name("moved"))
        path.mkdir()  # a directory can't be read as a file
        while "can't be followed" not in caplog.text:
            os.write(descriptor, b"two\n")
            await asyncio.sleep(0.01)
        path.rmdir()
        moved.rename(path)
        assert (await next_lines(log, 1, 1)) == ["two"]


async def test_a_log_that_cannot_be_deleted_stays(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = LogFile(path, max_bytes=1000, ring_lines=9)
    path.mkdir(parents=True)  # a directory can't be unlinked
    await log.remove()
    assert "can't be deleted" in caplog.text


async def test_a_flood_is_skipped_to_its_end(path: Path) -> None:
    async with followed(path, max_bytes=1 << 40, lines=1000) as (log, descriptor):
        block = b"f" * 99 + b"\n"
        for _ in range(20):
            os.write(descriptor, block * 10_000)  # 1 MB each
        os.write(descriptor, b"last\n")
        async for line in log.lines.follow(0):
            if line == "last":
                break
    assert log.lines.tail(1) == ["last"]


async def test_following_survives_truncation_and_removal_by_others(path: Path) -> None:
    async with followed(path) as (log, descriptor):
        os.write(descriptor, b"before, and quite long\n")
        assert await next_lines(log, 0, 1) == ["before, and quite long"]
        os.truncate(path, 0)
        os.write(descriptor, b"short\n")
        assert await next_lines(log, 1, 1) == ["short"]
        path.unlink()
        os.write(descriptor, b"unread\n")
    assert log.lines.tail(1) == ["short"]


async def test_a_stream_starts_with_the_tail_and_ends_when_the_ring_closes(path: Path) -> None:
    async with followed(path) as (log, descriptor):
        os.write(descriptor, b"a\nb\nc\n")
        await next_lines(log, 0, 3)
        stream = log.stream(2)
        assert [await anext(stream), await anext(stream)] == ["b", "c"]
        os.write(descriptor, b"d\n")
        assert await anext(stream) == "d"
        log.lines.close()
        assert [line async for line in stream] == []
    assert [line async for line in log.stream(0)] == []
