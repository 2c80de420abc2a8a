"""Stores what happens to instances, in the background and in order.

Every event marks its instance; one task writes the instance's current record, with the events since the last
write. While the store can't be written, Berth continues from memory and writes everything later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from instance_manager.errors import InstanceExists, ManagerError
from instance_manager.state.session import StateSession
from instance_manager.state.stores.errors import Conflict, LeaseLost, PortHeld, StoreUnavailable
from instance_manager.state.stores.records import ChangeKind, InstanceRecord, NewEvent, PortHold, Write
from instance_manager.types import Event

logger = logging.getLogger("berth.state")

_BACK_OFF_S = (0.1, 5.0)  # between attempts to write: the first, the longest
_MAX_EVENTS = 10_000  # kept while the store can't be written; the oldest are dropped
_EVENTS_PER_WRITE = 500
_WRITE_TIMEOUT_S = 5.0  # that callers wait for a write; after that they continue, and it is written later
_LAST_WRITES_S = 5.0  # that the shutdown waits for the last writes

Describe = Callable[[str], InstanceRecord | None]


@dataclass(frozen=True, slots=True)
class KeeperStatus:
    """`trouble`: why the stored state isn't up to date; None = it is, or will be in milliseconds."""

    trouble: str | None
    num_unwritten: int  # instances
    is_deposed: bool  # another process uses our name: nothing more is written


class StateKeeper:
    """`describe` returns an instance's current record, None once it is deleted."""

    def __init__(self, session: StateSession, describe: Describe) -> None:
        self._store = session.store
        self._owner = session.owner
        self._node = session.node
        self._describe = describe
        self._dirty: dict[str, None] = {}  # instances, in the order of their first change
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._versions: dict[str, int] = {}  # as stored; absent = no record
        self._ports: dict[str, int] = {}  # as held in the store
        self._foreign: set[str] = set()  # ids that belong to another node's instances
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._trouble: str | None = None
        self._loss: str | None = None  # of files of the store, see `note_loss`
        self._is_deposed = False
        self._has_ended = False

    @property
    def status(self) -> KeeperStatus:
        trouble = self._trouble or self._loss
        if trouble is None and self._store.is_away:
            trouble = "the store is away; changes are queued"
        return KeeperStatus(trouble, len(self._dirty), self._is_deposed)

    def check_is_owner(self) -> None:
        """Raises LeaseLost if another process has taken over this node's name."""
        if self._is_deposed:
            raise LeaseLost("another Berth process uses this node's name: stop one of them")

    def set_stored(self, record: InstanceRecord, port: int | None) -> None:
        """A record that is already stored, and the port that the store holds for it."""
        self._versions[record.instance_id] = record.version
        if port is not None:
            self._ports[record.instance_id] = port

    def on_event(self, event: Event) -> None:
        """A listener of the event log: the event is stored, and its instance's record is rewritten."""
        self._events.append(event)
        self.mark(event.instance_id)

    def mark(self, instance_id: str) -> None:
        """The instance has changed: write its record."""
        if not (self._has_ended or self._is_deposed):
            self._dirty.setdefault(instance_id)
            self._idle.clear()
            self._work.set()

    async def written(self, instance_id: str) -> None:
        """Return when the instance's current record is stored, or can't be stored for the time being.

        Raises InstanceExists if another node has an instance with this id, PortHeld if it holds the port.
        """
        if self._is_deposed or self._has_ended:
            return
        self.mark(instance_id)
        if self._trouble is not None:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(instance_id, []).append(waiter)
        with suppress(TimeoutError):
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await waiter

    async def settled(self, instance_id: str) -> None:
        """The same, but ignore that another node has the id or the port."""
        with suppress(InstanceExists, PortHeld):
            await self.written(instance_id)

    # The tasks.

    async def run(self) -> None:
        """Write until cancelled; see `finish`."""
        back_off_s = _BACK_OFF_S[0]
        while not self._is_deposed:
            await self._work.wait()
            try:
                await self._write_all()
                self._trouble, back_off_s = None, _BACK_OFF_S[0]
                continue
            except LeaseLost as error:
                self.depose(str(error))
            except StoreUnavailable as error:
                self._note_trouble(str(error))
            except Exception as error:  # the task's root: one failing write must not end all writing
                logger.exception("the state could not be written")
                self._note_trouble(repr(error))
            await asyncio.sleep(back_off_s)
            back_off_s = min(back_off_s * 2, _BACK_OFF_S[1])

    async def watch(self) -> None:
        """Follow the store's reports on queued writes and on the lease."""
        async for change in self._store.watch():
            if self._is_deposed:
                return
            if change.kind is ChangeKind.REJECTED and change.instance_id is not None:
                self.mark(change.instance_id)  # the next write reads the stored record
            elif change.kind is ChangeKind.REBUILT:
                self._rewrite_all()
            elif change.kind is ChangeKind.OWNER_LOST and change.owner == self._owner:
                await self._keep_lease()

    async def finish(self) -> None:
        """Write pending changes for a bounded time; after that nothing is written."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WRITES_S):
                await self._idle.wait()
        self._has_ended = True
        if self._dirty:
            logger.error("Berth exits before the state of %d instances was written", len(self._dirty))
        self._release_waiters()

    # Writing.

    async def _write_all(self) -> None:
        while self._dirty:
            instance_id = next(iter(self._dirty))
            del self._dirty[instance_id]
            waiters = self._waiting.pop(instance_id, [])
            error: ManagerError | None = None
            try:
                await self._write(instance_id)
            except (InstanceExists, PortHeld) as refusal:
                error = refusal
            except (TypeError, ValueError):  # a parameter that isn't JSON must not block the others
                logger.exception("the state of instance=%s can't be stored", instance_id)
            except BaseException:
                self._dirty = {instance_id: None, **self._dirty}
                self._waiting.setdefault(instance_id, []).extend(waiters)
                raise
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None) if error is None else waiter.set_exception(error)
            if error is not None and not waiters:
                logger.error("the state of instance=%s is not stored: %s", instance_id, error)
        self._work.clear()
        self._idle.set()

    async def _write(self, instance_id: str) -> None:
        """Store the instance's current record. Raises InstanceExists, PortHeld and the store's errors."""
        while True:
            events = tuple(islice(self._events, _EVENTS_PER_WRITE))
            record = None if instance_id in self._foreign else self._describe(instance_id)
            write = self._write_of(instance_id, record, events)
            try:
                await self._store.commit(write)
            except Conflict as conflict:
                await self._resolve_conflict(instance_id, conflict)
                continue
            # By id, not by count: a full queue may have dropped some of them while the write was awaited.
            while events and self._events and self._events[0].event_id <= events[-1].event_id:
                self._events.popleft()
            self._note_stored(write, record)
            if len(events) < _EVENTS_PER_WRITE:
                break
        if instance_id in self._foreign:
            if self._describe(instance_id) is None:
                self._foreign.discard(instance_id)
                return
            raise InstanceExists(f"another node has an instance named {instance_id!r}", param="name")

    def _write_of(
        self, instance_id: str, record: InstanceRecord | None, published: tuple[Event, ...]
    ) -> Write:
        version = self._versions.get(instance_id, 0)
        events = tuple(NewEvent(one.type, one.instance_id, one.time, one.data) for one in published)
        first = published[0].event_id if published else 0
        if record is None:
            known = instance_id if version else None
            return Write(delete=known, expected_version=version, events=events, first_event_id=first)
        held, port = self._ports.get(instance_id), record.port
        has_changed = held != port
        return Write(
            put=replace(record, version=version + 1),
            expected_version=version,
            events=events,
            first_event_id=first,
            hold=PortHold(self._node, port, instance_id) if has_changed and port is not None else None,
            release=PortHold(self._node, held, instance_id) if has_changed and held is not None else None,
        )

    def _note_stored(self, write: Write, record: InstanceRecord | None) -> None:
        if write.delete is not None:
            self._versions.pop(write.delete)
            self._ports.pop(write.delete, None)
        elif write.put is not None and record is not None:
            self._versions[record.instance_id] = write.put.version
            if record.port is None:
                self._ports.pop(record.instance_id, None)
            else:
                self._ports[record.instance_id] = record.port

    async def _resolve_conflict(self, instance_id: str, conflict: Conflict) -> None:
        """The record isn't at the version we expected: adopt the store's, unless another node owns it."""
        stored = await self._store.get(instance_id)
        if stored is None and conflict.found:
            self._overwrite_unreadable(instance_id, conflict)
            return
        if stored is not None and stored.owner != self._owner:
            self._foreign.add(instance_id)
            self._versions.pop(instance_id, None)
            return
        logger.warning("%s", conflict)
        version = 0 if stored is None else stored.version
        if version == conflict.expected:  # it would be refused for ever
            raise StoreUnavailable(f"the store contradicts itself: {conflict}")
        self._versions[instance_id] = version
        if stored is None:
            self._ports.pop(instance_id, None)

    def _rewrite_all(self) -> None:
        """The store has lost data: write every record again, with its port."""
        self._ports.clear()
        for instance_id in list(self._versions):
            self.mark(instance_id)

    def _overwrite_unreadable(self, instance_id: str, conflict: Conflict) -> None:
        """The stored record is unreadable: overwrite it with ours, unless it may be another node's."""
        if self._store.is_shared and instance_id not in self._versions:
            self._foreign.add(instance_id)
        else:
            self._versions[instance_id] = conflict.found

    # Trouble.

    def note_loss(self, message: str | None) -> None:
        """Files of the store were removed and can't be restored now; None: nothing is missing."""
        if message is not None and self._loss is None:
            logger.error("%s: continuing from memory", message)
        self._loss = message

    async def _keep_lease(self) -> None:
        """Our lease has expired, e.g. after a suspension: renew it, unless another process has taken it."""
        try:
            await self._store.renew_lease()
        except LeaseLost as error:
            self.depose(str(error))
        except StoreUnavailable as error:
            logger.warning("the lease will be renewed when the store is back: %s", error)

    def _note_trouble(self, message: str) -> None:
        if self._trouble is None:
            logger.error("%s: continuing from memory; the state will be written as soon as possible", message)
        self._trouble = message
        self._release_waiters()

    def depose(self, reason: str) -> None:
        """Another process uses this node's name now: nothing more is written."""
        if not self._is_deposed:
            logger.critical("another Berth process uses this node's name (%s): stop one of them", reason)
        self._is_deposed = True
        self._dirty.clear()
        self._trouble = "another Berth process uses this node's name"
        self._release_waiters()
        self._idle.set()

    def _release_waiters(self) -> None:
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        self._waiting.clear()
