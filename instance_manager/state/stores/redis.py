"""`redis://host:6379/0`: one state for many nodes.

Reads come from a mirror that a task updates from Redis's stream of changes; writes go to Redis, each in one
script. While Redis is away, the mirror serves reads and writes are queued in order; when it returns, they are
sent one by one, each checked against its record's version, and `watch` reports refused ones
(ChangeKind.REJECTED). A Redis that comes back empty gets this node's data again. Decisions that need Redis
raise StoreUnavailable meanwhile: new idempotency keys, leases, and writes beyond the queue's limit.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self

from instance_manager.state.stores.base import DEFAULT_HISTORY, StateStore
from instance_manager.state.stores.errors import StoreInUse, StoreUnavailable
from instance_manager.state.stores.records import (
    Change,
    Claim,
    Commit,
    InstanceRecord,
    Owner,
    OwnerLease,
    PortHold,
    Usage,
    Write,
)
from instance_manager.state.stores.redis_link import RedisLink, Unreachable
from instance_manager.state.stores.redis_mirror import KnownKey, Mirror
from instance_manager.state.stores.redis_sync import BACKOFF_S, RedisSync
from instance_manager.state.stores.redis_wire import (
    lease_lost,
    refusal,
    write_to_json,
)
from instance_manager.state.stores.tables import Tables
from instance_manager.types import Event

logger = logging.getLogger("berth.state")

OPEN_TIMEOUT_S = 10.0  # that a start waits for Redis to be reachable
LAST_WRITES_S = 8.0  # that a shutdown with queued changes waits for a Redis that is away
MAX_QUEUED = 10_000  # writes, while Redis is away


class RedisStore(StateStore):
    """Created by `await RedisStore.open(url)`. An acquired lease is renewed until `close`."""

    is_shared = True

    def __init__(self, url: str, *, prefix: str, history: int, max_queued: int) -> None:
        mirror = Mirror(history, max_queued, Tables(history))
        self._sync = RedisSync(RedisLink(url, prefix, history), mirror)
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        prefix: str = "berth",
        history: int = DEFAULT_HISTORY,
        max_queued: int = MAX_QUEUED,
        timeout_s: float = OPEN_TIMEOUT_S,
    ) -> Self:
        """Connect and read all data. Raises StoreUnavailable if Redis isn't reachable within `timeout_s`."""
        store = cls(url, prefix=prefix, history=history, max_queued=max_queued)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                await store._sync.recover()
                break
            except Unreachable as exc:
                if time.monotonic() >= deadline:
                    await store.close()
                    raise StoreUnavailable(
                        f"no Redis answers at {store._sync.link.name} ({exc}): "
                        "start it, or set another STATE_URL"
                    ) from exc
                await asyncio.sleep(BACKOFF_S[0])
        store._task = asyncio.create_task(store._sync.run(), name="berth-redis")
        return store

    async def commit(self, write: Write) -> Commit:
        async with self._sync.order:
            if self._sync.closed:
                raise StoreUnavailable(f"the state in {self._sync.link.name} is closed")
            if self._sync.lease_lost:
                raise lease_lost()
            if not self._sync.is_up:
                write_to_json(write, "", None)  # a write that can't be sent must not enter the queue
                return self._sync.mirror.enqueue(write, in_doubt=False)
            try:
                reply = await self._sync.send(write)
            except Unreachable as exc:
                self._sync.go_away(exc)
                return self._sync.mirror.enqueue(write, in_doubt=True)
            if "error" in reply:
                raise refusal(write, reply)
            return Commit(write.put, self._sync.confirm(write, reply))

    async def get(self, instance_id: str) -> InstanceRecord | None:
        return self._tables().records.get(instance_id)

    async def records(self) -> list[InstanceRecord]:
        return [record for _, record in sorted(self._tables().records.items())]

    async def events_since(self, event_id: int, limit: int = 1000) -> list[Event]:
        return self._tables().events_since(event_id, limit)

    async def last_event_id(self) -> int:
        return self._tables().last_event_id

    async def ports(self) -> list[PortHold]:
        return self._tables().port_holds()

    async def usage(self) -> list[Usage]:
        """While Redis is away: as last read, plus what this node has counted since."""
        self._tables()
        if self._sync.is_up:
            try:
                self._sync.set_usage(await self._sync.link.usage(self._sync.known_epoch))
            except Unreachable as exc:
                self._sync.go_away(exc)
        return self._sync.mirror.usage_totals()

    async def claim_key(self, key: str, instance_id: str, *, fingerprint: str, ttl_s: float) -> Claim:
        """While Redis is away, only keys that this node has claimed are known; others are refused."""
        self._tables()
        known = self._sync.mirror.keys.get(key)
        if not self._sync.is_up and known is not None and known.expires_at > time.monotonic():
            return _claim(key, known.value, is_new=False)
        nonce = secrets.token_hex(8)
        wanted = json.dumps({"instance": instance_id, "fingerprint": fingerprint, "nonce": nonce})
        expires_at = time.monotonic() + ttl_s
        try:
            held = await self._sync.link.claim(self._sync.online_epoch(), key, wanted, ttl_s)
        except Unreachable as exc:
            self._sync.go_away(exc)
            self._sync.keys_to_release.append((key, instance_id))  # it may have arrived
            raise self._sync.unavailable() from exc
        if held == wanted:
            self._sync.mirror.keys[key] = KnownKey(key, held, expires_at)
        return _claim(key, held, is_new=held == wanted)

    async def forget_key(self, key: str, instance_id: str) -> None:
        known = self._sync.mirror.keys.get(key)
        if known is not None and json.loads(known.value)["instance"] == instance_id:
            del self._sync.mirror.keys[key]
        self._sync.keys_to_release.append((key, instance_id))
        if self._sync.is_up:
            try:
                await self._sync.release_keys()
            except Unreachable as exc:
                self._sync.go_away(exc)

    async def acquire_lease(
        self, owner: str, ttl_s: float, *, take_over: bool = False, url: str = ""
    ) -> OwnerLease:
        try:
            reply = await self._sync.link.lease(
                self._sync.online_epoch(),
                "acquire",
                owner,
                self._sync.session,
                ttl_s,
                take_over=take_over,
                url=url,
            )
        except Unreachable as exc:
            self._sync.go_away(exc)
            raise self._sync.unavailable() from exc
        if "error" in reply:
            left = reply["expires_in_ms"] / 1000
            raise StoreInUse(
                f"another Berth process uses the name {owner!r} (its lease expires in {left:.1f} s): "
                "stop it, or give this one a STATE_DIR of its own"
            )
        self._sync.lease = OwnerLease(owner, self._sync.session, int(reply["fence"]), ttl_s, url)
        self._sync.lease_lost = False
        self._sync.renewed_at = time.monotonic()
        self._sync.mirror.fence = max(self._sync.mirror.fence, self._sync.lease.fence)
        return self._sync.lease

    async def renew_lease(self) -> OwnerLease:
        if self._sync.lease is None:
            raise RuntimeError("there is no lease to renew")
        try:
            await self._sync.renew(self._sync.lease)
        except Unreachable as exc:
            self._sync.go_away(exc)
            raise self._sync.unavailable() from exc
        return self._sync.lease

    async def release_lease(self) -> None:
        """While Redis is away, the lease is just dropped; it expires there by itself."""
        lease, self._sync.lease = self._sync.lease, None
        if lease is not None and self._sync.is_up:
            try:
                await self._sync.link.lease(
                    self._sync.known_epoch, "release", lease.owner, self._sync.session
                )
            except Unreachable as exc:
                self._sync.go_away(exc)

    async def owners(self) -> list[Owner]:
        """While Redis is away: as last read."""
        self._tables()
        if self._sync.is_up:
            try:
                self._sync.mirror.owners = await self._sync.link.owners(self._sync.known_epoch)
            except Unreachable as exc:
                self._sync.go_away(exc)
        return list(self._sync.mirror.owners.values())

    def watch(self) -> AsyncIterator[Change]:
        return self._sync.changes.follow(self._sync.changes.last_number)

    @property
    def is_away(self) -> bool:
        return not self._sync.is_up

    async def close(self) -> None:
        if self._sync.closed:
            return
        await self._until_caught_up()
        await self.release_lease()
        async with self._sync.order:  # finish a write in progress first
            self._sync.closed = True
        if self._task is not None:
            self._task.cancel()
            # Ends its wait for changes: the Redis client may mistake a cancellation for an empty reply.
            with suppress(Unreachable):
                await self._sync.link.close()
            await asyncio.wait((self._task,))
        if self._sync.mirror.queue:
            logger.error("Berth exits while Redis is away: %d changes are lost", len(self._sync.mirror.queue))
        self._sync.changes.close()
        with suppress(Unreachable):
            await self._sync.link.close()

    async def _until_caught_up(self) -> None:
        """Let the queue be written if Redis comes back soon: it is the last chance."""
        if self._task is None or self._sync.lease_lost:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WRITES_S):
                while self._sync.mirror.queue:
                    self._sync.caught_up.clear()
                    await self._sync.caught_up.wait()

    def _tables(self) -> Tables:
        if self._sync.closed:
            raise StoreUnavailable(f"the state in {self._sync.link.name} is closed")
        return self._sync.mirror.tables


def _claim(key: str, value: str, *, is_new: bool) -> Claim:
    data = json.loads(value)
    return Claim(key, data["instance"], data["fingerprint"], is_new)
