"""The data plane's interface to the instance manager, and waiting for a lease while watching the client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from api.http.asgi import Message, Receive
from instance_manager.types import Endpoint


class Lease(Protocol):
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
    """Grants leases."""

    def try_lease(self, instance_id: str) -> Lease | None:
        """A lease at once, or None if the instance is starting or waking and the request must wait.

        Raises InstanceNotFound, InstanceNotRunning, QueueFull or ShuttingDown.
        """

    async def wait_for_lease(self, instance_id: str) -> Lease:
        """A lease as soon as there is one, in order of arrival. Cancelling leaves the queue.

        Raises QueueFull, InstanceFailedToStart, StartTooSlow and what `try_lease` raises.
        """


# Called when an engine disappears before answering. Returns a `receive` that replays the request for another
# engine, or None if it cannot be retried.
Retry = Callable[[Lease, Receive], Awaitable[Receive | None]]

# Adapts a request to the engine of its lease; returns a `receive` for the adapted body.
Prepare = Callable[[Lease, Any, Receive], Awaitable[Receive]]

# While a client waits, we read from it to notice a disconnect, and keep what it sends: up to this much, then
# nothing more is read until it has a lease.
_HELD_BYTES = 1024 * 1024

CLIENT_GONE = 499  # status in metrics and access log when the client has disconnected, as in nginx


class ClientGone(Exception):
    """The client has disconnected."""


class WrongBody(Exception):
    """The rest of the client's body is invalid; its `receive` raises this from then on."""

    code = "invalid_form"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


async def lease_while_connected(leases: Leases, instance_id: str, receive: Receive) -> tuple[Lease, Receive]:
    """Wait for a lease while the client is connected; also returns a `receive` that misses no message.

    Raises ClientGone, WrongBody and what `wait_for_lease` raises.
    """
    held: deque[Message] = deque()
    waiter = asyncio.ensure_future(leases.wait_for_lease(instance_id))
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


def _release_unwanted(waiter: asyncio.Future[Lease]) -> None:
    """Release a lease granted just as its request ended; ignore an error."""
    if not waiter.cancelled() and waiter.exception() is None:
        waiter.result().release()
