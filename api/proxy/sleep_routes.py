"""An engine's own routes for sleep under /proxy/: they reach it asleep, and Berth takes note.

A kind's back end names them. Its route to wake needs no special case: like any request it wakes the engine
first, once there is memory for it.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol
from urllib.parse import parse_qs, unquote_to_bytes

from api.access.engine_routes import SAFE_METHODS
from api.http.asgi import Message, Send
from api.http.leases import Lease, Leases
from instance_manager.backends import BACKENDS


@cache
def _sleep_routes() -> frozenset[bytes]:
    """Those that put an engine to sleep."""
    return frozenset(path.encode() for one in BACKENDS.values() for path in one.routes.sleep.split())


@cache
def _all_routes() -> frozenset[bytes]:
    asleep = (path.encode() for one in BACKENDS.values() for path in one.routes.asleep.split())
    return _sleep_routes() | frozenset(asleep)


class SleepNotices(Protocol):
    """The part of the instance manager used here."""

    def lease_sleeping(self, instance_id: str, *, only_reads: bool) -> Lease | None:
        """A lease of a sleeping engine, without waking it; None if it does not sleep.

        `only_reads`: also of one that is about to sleep.
        """

    def record_sleep(self, instance_id: str, level: int) -> None:
        """Record that a client has put the engine to sleep."""

    def check_sleep(self, instance_id: str) -> None:
        """Check whether the engine sleeps."""


class SleepLeases:
    """Leases for these routes and for reads, which do not wake a sleeping engine."""

    def __init__(self, notices: SleepNotices, leases: Leases, method: str) -> None:
        self._notices = notices
        self._leases = leases
        self._only_reads = method in SAFE_METHODS

    def try_lease(self, instance_id: str) -> Lease | None:
        asleep = self._notices.lease_sleeping(instance_id, only_reads=self._only_reads)
        return asleep or self._leases.try_lease(instance_id)

    async def wait_for_lease(self, instance_id: str) -> Lease:
        return await self._leases.wait_for_lease(instance_id)


def is_sleep_route(target: bytes) -> bool:
    """Whether an engine's request target is one of these routes. Fast if it is not."""
    if len(target) > 64 or target.startswith(b"/v1/"):
        return False
    return unquote_to_bytes(target.partition(b"?")[0]) in _all_routes()


class SleepCall:
    """One call of such a route; `send` takes note of the response and forwards it."""

    def __init__(self, notices: SleepNotices, instance_id: str, target: bytes, send: Send) -> None:
        path, _, query = target.partition(b"?")
        self._is_sleep = unquote_to_bytes(path) in _sleep_routes()
        self._level = _level_of(query)
        self._notices = notices
        self._instance_id = instance_id
        self._send = send
        self._is_answered = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_answered = True
            if self._is_sleep and 200 <= message["status"] < 300:
                self._notices.record_sleep(self._instance_id, self._level)
        await self._send(message)

    def end(self) -> None:
        """Without a response it is unknown whether the engine sleeps, so check."""
        if self._is_sleep and not self._is_answered:
            self._notices.check_sleep(self._instance_id)


def _level_of(query: bytes) -> int:
    """The sleep level as vLLM reads it; the deepest if it is unknown."""
    value = parse_qs(query.decode("latin-1")).get("level", ["1"])[-1]
    return int(value) if value in ("1", "2") else 2
