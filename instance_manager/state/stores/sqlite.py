"""`sqlite:///berth.db`: one file for one process; the default.

One thread owns the connection and does everything in order; the event loop never waits for the disk. Each
write is one transaction and in the write-ahead log before its caller continues: it survives SIGKILL.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from instance_manager.broadcast.ring import BroadcastRing
from instance_manager.state.stores import sqlite_tables as tables
from instance_manager.state.stores.base import DEFAULT_HISTORY
from instance_manager.state.stores.errors import LeaseLost, StoreInUse, StoreUnavailable
from instance_manager.state.stores.lock import FileLock
from instance_manager.state.stores.memory import CHANGES_KEPT, change_of
from instance_manager.state.stores.records import (
    Change,
    ChangeKind,
    Claim,
    Commit,
    InstanceRecord,
    OwnerLease,
    PortHold,
    Usage,
    Write,
)
from instance_manager.state.stores.sole_owner import SoleOwnerStore
from instance_manager.state.stores.sqlite_file import is_corrupt, open_database, rebuild
from instance_manager.state.stores.sqlite_identity import identify, lock_path
from instance_manager.state.stores.sqlite_loss import FileId, file_ids, find_loss, put_back
from instance_manager.types import Event

logger = logging.getLogger("berth.state")

BUSY_TIMEOUT_S = 5.0  # for another program that locks the file, such as the sqlite3 tool

P = ParamSpec("P")
R = TypeVar("R")


class SqliteStore(SoleOwnerStore):
    """Created by `await SqliteStore.open(path)`. `clock` returns wall-clock seconds."""

    def __init__(self, path: Path, *, history: int, clock: Callable[[], float]) -> None:
        self._path = path
        self._history = history
        self._clock = clock
        self._lock = FileLock(lock_path(path))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="berth-state")
        self._connection: sqlite3.Connection | None = None  # used by the thread only
        self._lease: OwnerLease | None = None
        self._changes: BroadcastRing[Change] = BroadcastRing(CHANGES_KEPT)
        self._closed = False
        self._file_ids: dict[Path, FileId] = {}  # the database's files as we opened them
        self._was_rebuilt = False  # by the thread; the event loop has yet to report it

    @classmethod
    async def open(
        cls, path: Path, *, history: int = DEFAULT_HISTORY, clock: Callable[[], float] = time.time
    ) -> Self:
        """Open or create the database. Raises StoreInUse and StoreUnavailable."""
        # Follow links as SQLite does: its log and our lock lie beside the link's target.
        path = await asyncio.to_thread(_resolved, path)
        store = cls(path, history=history, clock=clock)
        try:
            await store._in_thread(store._open)
        except BaseException:
            store._thread.shutdown(wait=False)
            raise
        return store

    async def commit(self, write: Write) -> Commit:
        commit = await self._run(tables.commit, write, self._history)
        change = change_of(write, commit)
        if change is not None:
            self._changes.extend((change,))
        return commit

    async def get(self, instance_id: str) -> InstanceRecord | None:
        return await self._run(tables.record, instance_id)

    async def records(self) -> list[InstanceRecord]:
        return await self._run(tables.records)

    async def events_since(self, event_id: int, limit: int = 1000) -> list[Event]:
        return await self._run(tables.events_since, event_id, limit)

    async def last_event_id(self) -> int:
        return await self._run(tables.last_event_id)

    async def ports(self) -> list[PortHold]:
        return await self._run(tables.ports)

    async def usage(self) -> list[Usage]:
        return await self._run(tables.usage)

    async def claim_key(self, key: str, instance_id: str, *, fingerprint: str, ttl_s: float) -> Claim:
        return await self._run(tables.claim, Claim(key, instance_id, fingerprint, True), self._clock(), ttl_s)

    async def forget_key(self, key: str, instance_id: str) -> None:
        await self._run(tables.forget_key, key, instance_id)

    async def acquire_lease(
        self, owner: str, ttl_s: float, *, take_over: bool = False, url: str = ""
    ) -> OwnerLease:
        # The file lock already proves that no other process is here. So a full disk needn't prevent a
        # start: existing records can be read, and running engines found.
        try:
            fence = await self._run(tables.next_fence)
        except StoreUnavailable:
            fence = await self._run(tables.last_fence) + 1
        self._lease = OwnerLease(owner, secrets.token_hex(8), fence, math.inf, url)
        self._changes.extend((Change(ChangeKind.OWNER_JOINED, owner=owner),))
        return self._lease

    async def tend(self) -> None:
        await self._run_in_order(self._tend)

    async def close(self) -> None:
        if self._closed:
            return
        await self.release_lease()
        self._changes.close()
        try:
            await self._in_thread(self._close)
        finally:
            self._closed = True
            self._thread.shutdown(wait=False)

    async def _run(
        self, work: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run `work` on the connection, in the thread, and translate SQLite's errors."""
        return await self._run_in_order(lambda: self._guarded(lambda db: work(db, *args, **kwargs)))

    async def _run_in_order(self, work: Callable[[], R]) -> R:
        """Run it in the thread; a rebuilt database is reported whether the work succeeded or not."""
        try:
            return await self._in_thread(work)
        finally:
            if self._was_rebuilt:
                self._was_rebuilt = False
                self._changes.extend((Change(ChangeKind.REBUILT),))

    async def _in_thread(self, work: Callable[[], R]) -> R:
        if self._closed:
            raise StoreUnavailable(f"the state in {self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # The rest runs in the thread.

    def _open(self) -> None:
        try:
            identify(self._path)  # before a lock is created beside a file that may not be ours
        except OSError as exc:
            raise StoreUnavailable(f"can't read {self._path} (see STATE_URL): {exc}") from exc
        self._lock.acquire()
        try:
            self._connect()
        except BaseException:
            self._lock.release()
            raise

    def _connect(self) -> sqlite3.Connection:
        return self._use(open_database(self._path, busy_timeout_s=BUSY_TIMEOUT_S))

    def _use(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        self._connection = connection
        self._file_ids = file_ids(self._path)
        self._lock.sign(self._file_ids[self._path][1])
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._lock.release()

    def _guarded(self, work: Callable[[sqlite3.Connection], R]) -> R:
        connection = self._connection or self._connect()
        try:
            return work(connection)
        except sqlite3.Error as exc:
            if is_corrupt(exc):
                self._rebuild(exc)
            raise StoreUnavailable(f"the state in {self._path} can't be used now: {exc}") from exc

    def _rebuild(self, reason: sqlite3.Error) -> None:
        """Replace a damaged database by a new one with all rows that can still be read."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        try:
            self._use(rebuild(self._path, str(reason), busy_timeout_s=BUSY_TIMEOUT_S))
        except (sqlite3.Error, OSError) as exc:
            raise StoreUnavailable(f"the state in {self._path} is damaged and can't be moved: {exc}") from exc
        self._was_rebuilt = True

    def _tend(self) -> None:
        """Restore removed or replaced files: the open connection still has all data."""
        if self._connection is None:
            return
        if not self._lock.is_in_place:
            self._retake_lock()
        loss = find_loss(self._path, self._file_ids)
        if loss is None:
            return
        try:
            kept_as = put_back(self._connection, self._path)
            self._connection = None
            self._connect()
        except (sqlite3.Error, OSError) as exc:
            raise StoreUnavailable(
                f"the state in {self._path}: {loss}, and can't be restored: {exc}"
            ) from exc
        self._was_rebuilt = True
        kept = "" if kept_as is None else f"; the file in its place was moved to {kept_as}"
        logger.error("the state in %s: %s while Berth runs; put back from memory%s", self._path, loss, kept)

    def _retake_lock(self) -> None:
        try:
            self._lock.take_again()
        except StoreInUse as exc:
            raise LeaseLost(str(exc)) from exc


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as exc:  # circular links
        raise StoreUnavailable(f"STATE_URL names {path}, which can't be resolved: {exc}") from exc
