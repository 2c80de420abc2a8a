"""The connection to Redis: commands and scripts, and one exception for all its failures."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from instance_manager.state.stores import redis_scripts as scripts
from instance_manager.state.stores.records import Owner
from instance_manager.state.stores.redis_mirror import Snapshot
from instance_manager.state.stores.redis_wire import owners_from, snapshot_from, usage_from

CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 2.0  # a Redis that takes longer counts as away
REMEMBER_S = 6 * 3600  # for which a repeated write is recognised

Entry = tuple[str, Mapping[str, str]]
R = TypeVar("R")


class Unreachable(Exception):
    """Redis can't be reached, or has lost data. Internal to the store: callers never see it."""


class Incomplete(Unreachable):
    """Redis replies, but has lost data: this node must restore its own."""


def without_password(url: str) -> str:
    """The URL in a form that is safe to log."""
    parts = urlsplit(url)
    _, at, address = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"***@{address}" if at else parts.netloc, query=""))


@dataclass(frozen=True)
class Scripts:
    commit: AsyncScript
    lease: AsyncScript
    restore: AsyncScript
    claim: AsyncScript
    forget: AsyncScript
    mend: AsyncScript


@dataclass(frozen=True, slots=True)
class ExpectedData:
    """What Redis should have of one node: instance → version, port field → instance, and key names."""

    versions: Mapping[str, int]
    ports: Mapping[str, str]
    keys: Sequence[str]


class RedisLink:
    """One Redis, under keys that begin with `{prefix}:`. Knows nothing of mirrors or queues.

    Every method may raise Unreachable and retries nothing: the store knows what to send again.
    """

    def __init__(self, url: str, prefix: str, history: int) -> None:
        self.name = without_password(url)
        self._prefix = f"{{{prefix}}}:"
        self._history = history
        self._client = Redis.from_url(
            url,
            decode_responses=True,
            protocol=2,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=REPLY_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._scripts = Scripts(
            *(
                self._client.register_script(text)
                for text in (
                    *(scripts.COMMIT, scripts.LEASE, scripts.RESTORE),
                    *(scripts.CLAIM, scripts.FORGET, scripts.MEND),
                )
            )
        )

    async def commit(self, epoch: str, write_id: str, write: str) -> dict[str, Any]:
        """Apply a write (JSON). The reply has `n` and `first`, or `error`."""
        keys = [*self._keys(scripts.COMMIT_KEYS), self.done_key(write_id)]
        reply = await self._script(self._scripts.commit, keys, epoch, write, self._history, REMEMBER_S)
        if reply.get("error") == "lease_gone":
            raise Incomplete("our lease is gone")
        return reply

    def done_key(self, write_id: str) -> str:
        """The key that holds the reply to a write."""
        return self._key(f"done:{write_id}")

    async def lease(
        self,
        epoch: str,
        verb: str,
        owner: str,
        session: str,
        ttl_s: float = 0.0,
        *,
        take_over: bool = False,
        url: str = "",
    ) -> dict[str, Any]:
        """`verb`: acquire, renew or release. The reply has `fence`, or `error`."""
        arguments = (verb, owner, session, int(ttl_s * 1000), "1" if take_over else "0", url)
        return await self._script(self._scripts.lease, self._keys(scripts.LEASE_KEYS), epoch, *arguments)

    async def claim(self, epoch: str, key: str, claim: str, ttl_s: float) -> str:
        """Claim an idempotency key; returns the valid claim (JSON), ours or an earlier one."""
        keys = [*self._keys(scripts.KEY_KEYS), self._key(f"key:{key}")]
        held: str = (await self._script(self._scripts.claim, keys, epoch, claim, int(ttl_s * 1000)))["held"]
        return held

    async def forget(self, epoch: str, key: str, instance_id: str) -> None:
        """Release an idempotency key that this instance holds."""
        keys = [*self._keys(scripts.KEY_KEYS), self._key(f"key:{key}")]
        await self._script(self._scripts.forget, keys, epoch, instance_id)

    async def epoch(self) -> str | None:
        """The name of Redis's data set; None if it is empty."""
        found: str | None = await self._ask("GET", self._key("epoch"))
        return found

    async def restore(self, epoch: str, known: str) -> tuple[str, int]:
        """Restore missing data from `known` (JSON); returns the valid epoch and the number of entries."""
        keys = self._keys(scripts.RESTORE_KEYS)
        found: str
        found, put = await self._guarded(
            self._scripts.restore(keys=keys, args=[epoch, known, self._history, self._key("key:")])
        )
        return found, int(put)

    async def mend(self) -> Sequence[str]:
        """Rename foreign values under our key names; returns their new names."""
        aside = f":aside-{time.strftime('%Y%m%d-%H%M%S')}"
        arguments = [aside, *scripts.MEND_TYPES]
        moved: Sequence[str] = await self._guarded(
            self._scripts.mend(keys=self._keys(scripts.MEND_KEYS), args=arguments)
        )
        return moved

    async def check(self, epoch: str, expected: ExpectedData) -> dict[str, Owner]:
        """All leases, by Redis's clock. Raises Incomplete if expected data is missing."""
        commands: list[tuple[str | int, ...]] = [
            ("GET", self._key("epoch")),
            ("HGETALL", self._key("leases")),
            ("TIME",),
            ("EXISTS", *self._keys(expected.keys), self._key("epoch")),
            *(("HGET", self._key("versions"), one) for one in expected.versions),
            *(("HEXISTS", self._key("records"), one) for one in expected.versions),
            *(("HGET", self._key("ports"), one) for one in expected.ports),
        ]
        found, leases, now, num_keys, *fields = await self._transaction(*commands)
        self._check_epoch(epoch, found)
        expected_fields = [
            *map(str, expected.versions.values()),
            *(1 for _ in expected.versions),
            *expected.ports.values(),
        ]
        if num_keys != len(expected.keys) + 1 or fields != expected_fields:
            raise Incomplete("it has lost some of its data")
        return owners_from(leases, now)

    async def snapshot(self, epoch: str) -> Snapshot:
        """All data, as of one moment."""
        found, *replies = await self._transaction(
            ("GET", self._key("epoch")),
            ("HGETALL", self._key("records")),
            ("HGETALL", self._key("ports")),
            ("HGETALL", self._key("usage")),
            ("XREVRANGE", self._key("events"), "+", "-", "COUNT", self._history),
            ("HGETALL", self._key("counters")),
            ("XREVRANGE", self._key("changes"), "+", "-", "COUNT", 1),
            ("HGETALL", self._key("leases")),
            ("TIME",),
        )
        self._check_epoch(epoch, found)
        return snapshot_from(self._history, *replies)

    async def changes(self, position: str, wait_s: float) -> Sequence[Entry]:
        """The changes after `position` in the stream, waiting for the first one at most `wait_s`."""
        block = max(1, int(wait_s * 1000))
        reply = await self._ask(
            "XREAD", "COUNT", 100, "BLOCK", block, "STREAMS", self._key("changes"), position
        )
        entries: Sequence[Entry] = reply[0][1] if reply else ()
        return entries

    async def owners(self, epoch: str) -> dict[str, Owner]:
        """All leases, by Redis's clock."""
        return await self.check(epoch, ExpectedData({}, {}, ()))

    async def usage(self, epoch: str) -> dict[str, int]:
        """The raw fields of usage, of all owners."""
        found, usage = await self._transaction(("GET", self._key("epoch")), ("HGETALL", self._key("usage")))
        self._check_epoch(epoch, found)
        return usage_from(usage)

    async def close(self) -> None:
        await self._guarded(self._client.aclose())

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _keys(self, names: Sequence[str]) -> list[str]:
        return [self._key(name) for name in names]

    @staticmethod
    def _check_epoch(expected: str, found: str | None) -> None:
        if found != expected:
            raise Incomplete("it has lost its data")

    async def _ask(self, *command: str | int) -> Any:
        ask: Callable[..., Awaitable[Any]] = self._client.execute_command  # untyped
        return await self._guarded(ask(*command))

    async def _transaction(self, *commands: tuple[str | int, ...]) -> list[Any]:
        async with self._client.pipeline(transaction=True) as pipeline:
            queue: Callable[..., object] = pipeline.execute_command
            for command in commands:
                queue(*command)
            return await self._guarded(pipeline.execute())

    async def _script(self, script: AsyncScript, keys: list[str], epoch: str, *args: Any) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(await self._guarded(script(keys=keys, args=[epoch, *args])))
        if reply.get("error") == "epoch":
            self._check_epoch(epoch, None)
        return reply

    async def _guarded(self, work: Awaitable[R]) -> R:
        try:
            return await work
        except (RedisError, OSError) as exc:
            raise Unreachable(f"{type(exc).__name__}: {exc}") from exc
