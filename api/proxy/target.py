"""Where one request goes, and waiting for a lease there while watching the client."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from api.http.asgi import Message, Receive, Send
from api.http.client_errors import ClientGone
from api.proxy.upstream_request import UpstreamRequest
from instance_manager.backends.load_signs import LoadProgress
from instance_manager.types import Endpoint

# While a client waits, we read from it to notice a disconnect, and keep what it sends: up to this much, then
# nothing more is read until it has a lease.
_HELD_BYTES = 1024 * 1024


class UpstreamLease(Protocol):
    """The right to send one request to an engine, granted together with the check that it is running.

    While a lease is held its engine neither expires nor sleeps, and a stop waits for it.
    """

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def instance_id(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def is_wanted(self) -> bool:
        """Whether another request waits for this capacity."""

    def release(self) -> None:
        """Give it back. Idempotent."""


class Leases(Protocol):
    """The instance manager, for requests to one instance."""

    def try_lease(self, instance_id: str) -> UpstreamLease | None:
        """As `Target.try_acquire`. Raises InstanceNotFound, InstanceNotRunning, QueueFull or ShuttingDown."""

    async def wait_for_lease(self, instance_id: str) -> UpstreamLease:
        """As `Target.acquire`. Raises InstanceFailedToStart, StartTooSlow and what `try_lease` raises."""


class Translation(Protocol):
    """Translates one response on its way to the client."""

    async def run(self, exchange: Callable[[Send], Awaitable[int]], send: Send, request_id: bytes) -> int:
        """Run the exchange with a `send` that translates; the status. Raises what `Exchange.run` raises."""


class Target(ABC):
    """Where one request goes: an instance, a model, or another node. Made for that request."""

    __slots__ = ()

    name: str  # for log lines
    path: bytes  # path and query for the engine, as sent to it
    headers: Sequence[tuple[bytes, bytes]] = ()  # besides the client's
    translation: Translation | None = None  # set in `prepare`, if its engine speaks another API

    @abstractmethod
    def try_acquire(self) -> UpstreamLease | None:
        """A lease at once, or None if the request must wait. Raises ManagerError."""

    @abstractmethod
    async def acquire(self) -> UpstreamLease:
        """A lease as soon as there is one. Cancelling leaves the queue. Raises ManagerError."""

    def load_progress(self) -> LoadProgress | None:
        """How far the start of its engine is, while the request waits for it; None = unknown."""
        return None

    async def prepare(self, lease: UpstreamLease, request: UpstreamRequest, receive: Receive) -> Receive:
        """Adapt the request to the engine of its lease; returns a `receive` for the adapted body."""
        return receive

    async def may_retry(self, lease: UpstreamLease) -> bool:
        """Whether another lease may serve the request, as this one's engine vanished before it responded."""
        return False

    def failed(self) -> None:  # noqa: B027 - most targets need nothing
        """The request failed for good at the other end."""


class InstanceTarget(Target):
    """One instance of this node."""

    __slots__ = ("_leases", "name", "path")

    def __init__(self, leases: Leases, instance_id: str, path: bytes) -> None:
        self._leases = leases
        self.name = instance_id
        self.path = path

    def try_acquire(self) -> UpstreamLease | None:
        return self._leases.try_lease(self.name)

    async def acquire(self) -> UpstreamLease:
        return await self._leases.wait_for_lease(self.name)


async def acquire_while_connected(target: Target, receive: Receive) -> tuple[UpstreamLease, Receive]:
    """Wait for a lease while the client is connected; also returns a `receive` that misses no message.

    Raises ClientGone, WrongBody and what `acquire` raises.
    """
    held: deque[Message] = deque()
    waiter = asyncio.ensure_future(target.acquire())
    listener = asyncio.ensure_future(_hold_until_gone(receive, held))
    is_handed_on = False
    try:
        await asyncio.wait((waiter, listener), return_when=asyncio.FIRST_COMPLETED)
        if not waiter.done() and listener.result():
            raise ClientGone
        lease = await waiter
        is_handed_on = True
    finally:
        if not listener.cancel() and not listener.cancelled():
            listener.exception()  # the next `receive` raises it again
        if not is_handed_on:
            waiter.cancel()
            waiter.add_done_callback(_release_unwanted)

    async def receive_held_first() -> Message:
        return held.popleft() if held else await receive()

    return lease, receive_held_first


async def _hold_until_gone(receive: Receive, held: deque[Message]) -> bool:
    """Keep what the client sends; True once it has disconnected, False at the limit."""
    size = 0
    while size < _HELD_BYTES:
        message = await receive()
        held.append(message)
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            return True
        size += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
    return False


def _release_unwanted(waiter: asyncio.Future[UpstreamLease]) -> None:
    """Release a lease granted just as its request ended; ignore an error."""
    if not waiter.cancelled() and waiter.exception() is None:
        waiter.result().release()
