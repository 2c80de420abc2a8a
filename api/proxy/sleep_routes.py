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
from api.proxy.target import InstanceTarget, Leases, UpstreamLease
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

    def lease_sleeping(self, instance_id: str, *, only_reads: bool) -> UpstreamLease | None:
        """A lease of a sleeping engine, without waking it; None if it does not sleep.

        `only_reads`: also of one that is about to sleep.
        """

    def record_sleep(self, instance_id: str, level: int) -> None:
        """Record that a client has put the engine to sleep."""

    def check_sleep(self, instance_id: str) -> None:
        """Check whether the engine sleeps."""


class SleepTarget(InstanceTarget):
    """An instance for these routes and for reads, which do not wake its engine."""

    __slots__ = ("_notices", "_only_reads")

    def __init__(
        self, notices: SleepNotices, leases: Leases, instance_id: str, path: bytes, method: str
    ) -> None:
        super().__init__(leases, instance_id, path)
        self._notices = notices
        self._only_reads = method in SAFE_METHODS

    def try_acquire(self) -> UpstreamLease | None:
        asleep = self._notices.lease_sleeping(self.name, only_reads=self._only_reads)
        return asleep or super().try_acquire()


def is_sleep_route(target: bytes) -> bool:
    """Whether an engine's request target is one of these routes. Fast if it is not."""
    if len(target) > 64 or target.startswith(b"/v1/"):
        return False
    return unquote_to_bytes(target.partition(b"?")[0]) in _all_routes()


class SleepCall:
    """One call of such a route; `send` takes note of the response and forwards it."""

    def __init__(self, notices: SleepNotices, target: SleepTarget, send: Send) -> None:
        path, _, query = target.path.partition(b"?")
        self._is_sleep = unquote_to_bytes(path) in _sleep_routes()
        self._level = _level_of(query)
        self._notices = notices
        self._instance_id = target.name
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
