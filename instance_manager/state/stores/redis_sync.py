"""Synchronises with Redis: updates the mirror, renews the lease, replays the queue when Redis returns."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from instance_manager.broadcast.ring import BroadcastRing
from instance_manager.state.stores.errors import LeaseLost, StoreUnavailable
from instance_manager.state.stores.memory import CHANGES_KEPT
from instance_manager.state.stores.records import Change, ChangeKind, Owner, OwnerLease, Write
from instance_manager.state.stores.redis_link import ExpectedData, Incomplete, RedisLink, Unreachable
from instance_manager.state.stores.redis_mirror import Mirror
from instance_manager.state.stores.redis_wire import (
    change_from_json,
    lease_lost,
    port_field,
    refusal,
    restore_json,
    without_record,
    write_to_json,
)
from instance_manager.types import Event

logger = logging.getLogger("berth.state")

BACKOFF_S = (0.05, 2.0)  # between attempts to reach Redis: the first, the longest
_NOBODY = "\0"
TICK_S = 0.5  # the longest interval between checks of the leases


class RedisSync:
    """Either up (the mirror equals Redis) or away (the mirror is ahead, with a queue).

    One task runs `run`; the store's methods call the rest. Only `recover` sets it up.
    """

    def __init__(self, link: RedisLink, mirror: Mirror) -> None:
        self.link = link
        self.mirror = mirror
        self.is_up = False
        self.closed = False
        self.caught_up = asyncio.Event()  # set when the queue is empty
        self.lease: OwnerLease | None = None
        self.lease_lost = False
        self.renewed_at = 0.0  # monotonic
        self.session = secrets.token_hex(8)
        self.keys_to_release: list[tuple[str, str]] = []  # idempotency keys and their instances, for later
        self.changes: BroadcastRing[Change] = BroadcastRing(CHANGES_KEPT)
        self._epoch: str | None = None
        self._position = "0"  # in the stream of changes
        self._last_change = 0
        self.order = asyncio.Lock()  # one write at a time, so that the queue stays in order
        self._is_incomplete = False  # our data must be restored
        self._was_restored = False  # in this recovery
        self._rejected: list[tuple[Write, str]] = []  # reported after the next reset of the mirror

    @property
    def known_epoch(self) -> str:
        if self._epoch is None:
            raise Unreachable("it has not been reached yet")
        return self._epoch

    def online_epoch(self) -> str:
        if not self.is_up:
            raise self.unavailable()
        return self.known_epoch

    def unavailable(self) -> StoreUnavailable:
        return StoreUnavailable(f"Redis at {self.link.name} is away, and this can't be decided without it")

    async def send(self, write: Write) -> dict[str, Any]:
        lease = self.lease
        owner, session = ("", None) if lease is None else (lease.owner, self.session)
        text = write_to_json(write, owner, session)
        reply = await self.link.commit(self.known_epoch, write.write_id, text)
        if reply.get("error") == "conflict" and int(reply["found"]) < self._own_version(write.instance_id):
            raise Incomplete("it has lost a record of ours")
        return reply

    def _own_version(self, instance_id: str | None) -> int:
        """The version of a record that only this node may change; 0 for any other."""
        record = self.mirror.known.records.get(instance_id or "")
        return record.version if record is not None and record.owner == self._owner else 0

    def set_usage(self, usage: dict[str, int]) -> None:
        """Usage as read from Redis. Raises Incomplete."""
        if any(name not in usage for name in self.mirror.own_usage(self._owner)):
            raise Incomplete("it has lost usage counts")
        self.mirror.usage = usage

    def confirm(self, write: Write, reply: Mapping[str, Any]) -> tuple[Event, ...]:
        first = int(reply["first"])
        events = tuple(event.numbered(first + place) for place, event in enumerate(write.events))
        owner = "" if self.lease is None else self.lease.owner
        self.mirror.confirm(write, int(reply["n"]), events, owner)
        return events

    async def renew(self, lease: OwnerLease) -> None:
        reply = await self.link.lease(
            self.known_epoch, "renew", lease.owner, self.session, lease.ttl_s, url=lease.url
        )
        self.renewed_at = time.monotonic()
        if "error" in reply:
            self._lose_lease(lease)
            raise lease_lost()
        if reply.get("again"):
            raise Incomplete("our lease was gone")

    def _lose_lease(self, lease: OwnerLease) -> None:
        self.lease_lost = True
        logger.error(
            "another process has taken over the lease of %r: this one writes nothing more", lease.owner
        )
        reason = "another process has taken over"
        self._publish(Change(ChangeKind.OWNER_LOST, owner=lease.owner, reason=reason))

    def go_away(self, exc: Unreachable) -> None:
        self._is_incomplete = self._is_incomplete or isinstance(exc, Incomplete)
        if self.is_up and isinstance(exc, Incomplete):
            self.is_up = False
            logger.warning("Redis at %s: %s; restoring this node's data", self.link.name, exc)
        elif self.is_up:
            self.is_up = False
            logger.warning("Redis at %s is away (%s): continuing from memory", self.link.name, exc)

    def _publish(self, *changes: Change) -> None:
        self.changes.extend(changes)

    # The rest is run by the task that follows Redis (and by `open` before that task starts).

    async def run(self) -> None:
        backoff = BACKOFF_S[0]
        while not self.closed:  # checked too, as the Redis client sometimes swallows a cancellation
            try:
                if not self.is_up:
                    await self.recover()
                    logger.info("Redis at %s is synchronised again", self.link.name)
                backoff = BACKOFF_S[0]
                await self._follow()
            except Unreachable as exc:
                self.go_away(exc)
            except Exception as exc:  # the task's root: the next round starts from Redis's data
                logger.exception("following Redis at %s failed", self.link.name)
                self.go_away(Unreachable(repr(exc)))
            if not self.closed:
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - spreads attempts
            backoff = min(2 * backoff, BACKOFF_S[1])

    async def recover(self) -> None:
        """Synchronise with Redis from any state, until nothing is queued."""
        for name in await self.link.mend():
            logger.error(
                "a foreign value in Redis at %s had one of our key names: renamed to %s", self.link.name, name
            )
            self._is_incomplete = True
        await self._settle_epoch()
        if self.lease is not None and not self.lease_lost:
            await self._reacquire_lease(self.lease)
        while True:
            await self._replay()
            await self.release_keys()
            snapshot = await self.link.snapshot(self.known_epoch)
            if self.mirror.queue:
                continue
            if not self._was_restored and self.mirror.lacks(snapshot, self._owner):
                await self._restore()
                continue
            break
        self._publish(*self.mirror.reset(snapshot))
        self._position, self._last_change = snapshot.position, snapshot.change
        self.mirror.ahead = None
        self.is_up = True
        self.caught_up.set()
        for write, reason in self._rejected:
            record = self.mirror.known.records.get(write.instance_id or "")
            self._publish(Change(ChangeKind.REJECTED, write.instance_id, record, reason=reason))
        self._rejected = []

    @property
    def _owner(self) -> str:
        """The owner of records that we may restore: none, once another process uses our name."""
        if self.lease_lost:
            return _NOBODY
        return "" if self.lease is None else self.lease.owner

    async def _settle_epoch(self) -> None:
        self._was_restored = False
        epoch = await self.link.epoch()
        if epoch is None or self._epoch not in (None, epoch) or self._is_incomplete:
            await self._restore()
        else:
            self._epoch = epoch

    async def _restore(self) -> None:
        """Restore our data where it is missing."""
        known = restore_json(self.mirror, self._owner, time.monotonic(), self.link.done_key)
        is_first = self._epoch is None
        self._epoch, num_put = await self.link.restore(secrets.token_hex(8), known)
        self._is_incomplete, self._was_restored = False, True
        if num_put and not is_first:
            logger.warning(
                "Redis at %s has lost data: %d entries of this node were restored", self.link.name, num_put
            )

    async def _reacquire_lease(self, lease: OwnerLease) -> None:
        reply = await self.link.lease(
            self.known_epoch, "acquire", lease.owner, self.session, lease.ttl_s, url=lease.url
        )
        self.renewed_at = time.monotonic()
        if "error" in reply:
            self._lose_lease(lease)
        elif self.lease is not None:
            self.lease = replace(lease, session=self.session, fence=int(reply["fence"]))

    async def _replay(self) -> None:
        queue = self.mirror.queue
        while queue:
            write = queue[0]
            reply = await self.send(write)
            queue.popleft()
            if "error" not in reply:
                self.confirm(write, reply)
                continue
            error = refusal(write, reply)
            logger.error("a change queued while Redis was away was refused: %s", error)
            self._rejected.append((write, str(error)))
            rest = without_record(write)
            if not isinstance(error, LeaseLost) and (rest.events or rest.usage):
                queue.appendleft(rest)

    async def release_keys(self) -> None:
        while self.keys_to_release:
            await self.link.forget(self.known_epoch, *self.keys_to_release[0])
            self.keys_to_release.pop(0)

    async def _follow(self) -> None:
        """Apply changes and renew the lease, until Redis is away."""
        checked_at = time.monotonic()
        while self.is_up and not self.closed:
            lease = None if self.lease_lost else self.lease
            tick_s = TICK_S if lease is None else min(TICK_S, lease.ttl_s / 4)
            for position, entry in await self.link.changes(self._position, tick_s):
                number = _number_of(entry)
                if number != self._last_change + 1 or "restored" in entry:
                    self.is_up = False  # changes were missed, or data restored: the next round reads all
                    self._is_incomplete = "restored" in entry
                    break
                self._position, self._last_change = position, number
                self._apply(entry)
            now = time.monotonic()
            if lease is not None and lease is self.lease and now - self.renewed_at >= lease.ttl_s / 3:
                with suppress(LeaseLost):  # already reported
                    await self.renew(lease)
            if now - checked_at >= tick_s:
                checked_at = now
                self._publish(*self.mirror.expired_owners(await self._check()))

    async def _check(self) -> dict[str, Owner]:
        """The lease holders. Raises Incomplete if any of our data, or our lease, is missing."""
        async with self.order:  # none of our writes is in progress
            if not self.is_up:
                raise Unreachable("it went away meanwhile")
            lease = None if self.lease_lost else self.lease  # one acquired from now on may not be included
            owners = await self.link.check(self.known_epoch, self._expected_data())
        if lease is None or lease is not self.lease or self.lease_lost:
            return owners
        if not (lease.owner in owners and owners[lease.owner].is_alive):
            raise Incomplete("our lease is gone")
        return owners

    def _expected_data(self) -> ExpectedData:
        """What Redis should have of this node; nothing if it has no name."""
        known = self.mirror.known
        if self.lease is None or self.lease_lost:
            return ExpectedData({}, {}, ())
        versions = {record.instance_id: record.version for record in self.mirror.own_records(self._owner)}
        ports = {port_field(*where): holder for where, holder in known.ports.items() if holder in versions}
        keys = ["counters"]
        keys += ["events"] if known.events else []
        keys += ["usage"] if self.mirror.own_usage(self._owner) else []
        return ExpectedData(versions, ports, keys)

    def _apply(self, entry: Mapping[str, str]) -> None:
        """Apply one change of the stream."""
        if "joined" in entry or "lost" in entry:
            owner = entry.get("joined") or entry["lost"]
            alive = self.mirror.alive
            if "joined" in entry and owner not in alive:
                alive.add(owner)
                self._publish(Change(ChangeKind.OWNER_JOINED, owner=owner))
            elif "lost" in entry and owner in alive:
                alive.discard(owner)
                self._publish(Change(ChangeKind.OWNER_LOST, owner=owner, reason="it has ended"))
            return
        write, events = change_from_json(entry["w"], int(entry["first"]))
        self.mirror.apply(write, int(entry["n"]), events)
        if write.put is not None:
            self._publish(Change(ChangeKind.PUT, write.put.instance_id, write.put, events))
        elif write.delete is not None:
            self._publish(Change(ChangeKind.DELETED, write.delete, events=events))
        elif events:
            self._publish(Change(ChangeKind.EVENTS, events=events))


def _number_of(entry: Mapping[str, str]) -> int:
    """A change's number; 0 for a foreign entry."""
    number = entry.get("n", "")
    is_ours = "joined" in entry or "lost" in entry or "restored" in entry or "w" in entry
    return int(number) if is_ours and number.isdecimal() else 0
