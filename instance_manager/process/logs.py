"""One instance's log: the engine appends to its own file, and Berth follows it.

The engine's output never passes through Berth, so an engine survives the end of Berth. Copy-and-truncate
keeps the file small without the engine's cooperation, since it writes in append mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from instance_manager.broadcast.ring import BroadcastRing

logger = logging.getLogger("berth.manager")

_CHUNK_BYTES = 256 * 1024
_MAX_BACKLOG_BYTES = 8 * 1024 * 1024  # a follower further behind skips ahead
_MAX_LINE_BYTES = 8 * 1024
_NUM_LATEST = 100  # lines
_POLL_MIN_S = 0.05
_POLL_MAX_S = 0.5


class LogFile:
    """Follows one file into a ring of lines. All file access runs in threads."""

    def __init__(self, path: Path, *, max_bytes: int, ring_lines: int) -> None:
        self.path = path
        self.lines: BroadcastRing[str] = BroadcastRing(ring_lines)
        self.grown_at = 0.0  # monotonic seconds of the engine's last output
        self._max_bytes = max_bytes
        self._offset = 0
        self._partial = b""
        self._stop = asyncio.Event()
        self._is_failing = False

    @property
    def backup_path(self) -> Path:
        """The file with the rotated part."""
        return backup_of(self.path)

    def latest(self, after: int) -> list[str]:
        """The latest lines above number `after`, and the one that the engine is writing: a progress bar."""
        return [*self.lines.since(after)[-_NUM_LATEST:], _text(self._partial)]

    async def open_for_engine(self) -> int:
        """A file descriptor in append mode for the child; following starts at the current end."""
        descriptor, self._offset = await asyncio.to_thread(_open_append, self.path)
        self._partial = b""
        self._stop = asyncio.Event()
        self.lines.reopen()
        if await asyncio.to_thread(_is_full, self.path):
            directory = self.path.parent
            self.lines.extend([f"[Berth: the disk of {directory} is full, the engine's output is lost]"])
        return descriptor

    async def open_to_append(self) -> int:
        """A file descriptor for a program that adds to the engine's output."""
        descriptor, _ = await asyncio.to_thread(_open_append, self.path)
        return descriptor

    async def size(self) -> int:
        """Size of the file in bytes."""
        return await asyncio.to_thread(_size, self.path)

    async def resume(self, start: int) -> int:
        """Read the end of an existing log; `follow` continues from there.

        Returns the number of the last line before byte `start`, or 0 if all lines that are kept came later.
        """
        size = await asyncio.to_thread(_size, self.path)
        start = start if start <= size else 0  # it was rotated
        begin = max(0, size - _CHUNK_BYTES)
        mark = 0
        for first, last in ((begin, start), (max(begin, start), size)):
            if last > first:
                self._add(await asyncio.to_thread(_read, self.path, first, last - first))
            mark = self.lines.last_number if last == start else mark
        self._offset = size
        return mark

    async def follow(self) -> None:
        """Follow the file until `finish` is called, then read once more to its end."""
        interval = _POLL_MIN_S
        while not self._stop.is_set():
            grew = await self._poll()
            interval = _POLL_MIN_S if grew else min(interval * 1.5, _POLL_MAX_S)
            try:
                async with asyncio.timeout(interval):
                    await self._stop.wait()
            except TimeoutError:
                continue
        await self._poll()
        if self._partial:
            self._add(b"\n")

    def finish(self) -> None:
        """Make `follow` read the rest and return; the engine no longer writes."""
        self._stop.set()

    async def stream(self, tail: int) -> AsyncIterator[str]:
        """The last `tail` lines, then new ones until the instance has stopped."""
        async for line in self.lines.follow(max(0, self.lines.last_number - tail)):
            yield line

    async def remove(self) -> None:
        """Delete the file and its backup. An error is only logged."""
        try:
            await asyncio.to_thread(_unlink, self.path, self.backup_path)
        except OSError as error:
            logger.warning("the log %s can't be deleted: %s", self.path, error)

    async def _poll(self) -> bool:
        """Read new output and rotate a full file. After an error (disk, descriptors) try again next time."""
        try:
            grew = await self._read_to_end()
            if self._offset > self._max_bytes:
                await self._rotate()
        except OSError as error:
            if not self._is_failing:
                logger.warning("the log %s can't be followed for now: %s", self.path, error)
            self._is_failing = True
            return False
        self._is_failing = False
        return grew

    async def _read_to_end(self) -> bool:
        """Read up to the size at the time of the call, so that a flood can't keep us here."""
        grew = False
        size = await asyncio.to_thread(_size, self.path)
        if size < self._offset:  # truncated by another program
            self._offset = 0
        if size - self._offset > _MAX_BACKLOG_BYTES:
            self._skip_to(size - _CHUNK_BYTES)
        while self._offset < size:
            chunk = await asyncio.to_thread(_read, self.path, self._offset, _CHUNK_BYTES)
            if not chunk:
                break
            self._offset += len(chunk)
            self._add(chunk)
            self.grown_at = time.monotonic()
            grew = True
        return grew

    def _skip_to(self, offset: int) -> None:
        skipped = offset - self._offset
        self._offset = offset
        self._partial = b""
        self.lines.extend([f"[{skipped} bytes of log skipped]"])

    def _add(self, chunk: bytes) -> None:
        *complete, rest = (self._partial + chunk).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            complete.append(rest)
            rest = b""
        self._partial = rest
        self.lines.extend(_text(line) for line in complete[-self.lines.capacity :])

    async def _rotate(self) -> None:
        late = await asyncio.to_thread(
            _copy_and_truncate, self.path, self.backup_path, self._offset, self._max_bytes
        )
        self._offset = 0
        if late:
            self._add(late)


def _open_append(path: Path) -> tuple[int, int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    return descriptor, os.fstat(descriptor).st_size


def _is_full(path: Path) -> bool:
    return os.statvfs(path).f_bavail == 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path, offset: int, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(count)
    except FileNotFoundError:
        return b""


def _copy_and_truncate(path: Path, backup: Path, offset: int, max_bytes: int) -> bytes:
    """Copy the last 2 * `max_bytes` to the backup, truncate the file, and return what came after `offset`.

    Lines written between the last read and the truncation are lost: the price of not involving the engine.
    If the disk is too full for a backup, the file is truncated without one, which frees space.
    """
    try:
        with path.open("rb") as source:
            try:
                _copy_end(source, backup, 2 * max_bytes)
            except OSError as error:
                logger.warning("no backup of the log %s is kept: %s", path, error)
                with contextlib.suppress(OSError):
                    backup.unlink(missing_ok=True)
            end = source.seek(0, os.SEEK_END)
            begin = source.seek(min(end, max(offset, end - _MAX_BACKLOG_BYTES)))
            late = source.read(end - begin)
            os.truncate(path, 0)
    except FileNotFoundError:
        return b""
    return late


def _copy_end(source: BinaryIO, backup: Path, num_bytes: int) -> None:
    source.seek(max(0, source.seek(0, os.SEEK_END) - num_bytes))
    with backup.open("wb") as target:
        _copy(source, target, num_bytes)
        target.write(source.read(_CHUNK_BYTES))  # appended during the copy


def _copy(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
    """Copy at most `num_bytes`: during a flood the source never ends."""
    while num_bytes > 0 and (chunk := source.read(min(num_bytes, _CHUNK_BYTES))):
        num_bytes -= target.write(chunk)


def backup_of(path: Path) -> Path:
    """The file with the rotated part of a log."""
    return path.with_name(path.name + ".1")


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _text(line: bytes) -> str:
    r"""The line as a terminal finally shows it: progress bars overwrite it after each `\r`."""
    shown = line.rstrip(b"\r").rpartition(b"\r")[2][:_MAX_LINE_BYTES]
    return shown.decode("utf-8", "replace")
