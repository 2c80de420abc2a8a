"""What the data plane needs of the instance manager, and waiting for it with an eye on the client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from api.http.asgi import Message, Receive
from instance_manager.types import Endpoint


class Lease(Protocol):
    """The right to send one request to an engine, granted together with the check that it is running.

    While a lease is out its engine is neither expired nor put to sleep, and a stop drains first.
    """

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def instance_id(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a place like this one."""

    def release(self) -> None:
        """Give it back; more than once does no harm."""


class Leases(Protocol):
    """Grants leases."""

    def try_lease(self, instance_id: str) -> Lease | None:
        """A lease at once, or None where the instance is on its way to running and the request must wait.

        Raises InstanceNotFound, InstanceNotRunning, QueueFull or ShuttingDown.
        """

    async def wait_for_lease(self, instance_id: str) -> Lease:
        """A lease as soon as there is one, in order of arrival. To be cancelled is to leave the queue.

        Raises QueueFull, InstanceFailedToStart, StartTooSlow and what `try_lease` raises.
        """


# What a request does whose engine was gone before it answered: from the `receive` that it has used, one that
# gives the client's messages from the first on, where another engine may serve it; None where it has failed.
Retry = Callable[[Lease, Receive], Awaitable[Receive | None]]

# Finishes a request for the engine that it has a lease of: a `receive` that gives the body as that is to have
# it.
Prepare = Callable[[Lease, Any, Receive], Awaitable[Receive]]

# A client that waits is listened to for its leaving, and what it sends meanwhile is kept: up to this much,
# then no more is read of it until its turn comes.
_HELD_BYTES = 1024 * 1024

CLIENT_GONE = 499  # what metrics and the access log show where nobody was left to answer, as nginx has it


class ClientGone(Exception):
    """The client has left; there is nobody to answer."""


class WrongBody(Exception):
    """What the client goes on to send can't be served; its `receive` raises this from then on."""

    code = "invalid_form"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


async def lease_while_connected(leases: Leases, instance_id: str, receive: Receive) -> tuple[Lease, Receive]:
    """Wait for a lease for as long as the client does; with it comes a `receive` that misses nothing.

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
            listener.exception()  # which the next `receive` raises again
        if not is_handed_on:
            waiter.cancel()
            waiter.add_done_callback(_release_unwanted)

    async def receive_held_first() -> Message:
        return held.popleft() if held else await receive()

    return lease, receive_held_first


async def _hold_until_gone(receive: Receive, held: deque[Message]) -> bool:
    """Collect what the client sends; True once it has left, False when that is as much as we hold."""
    size = 0
    while size < _HELD_BYTES:
        message = await receive()
        held.append(message)
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            return True
        size += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
    return False


def _release_unwanted(waiter: asyncio.Future[Lease]) -> None:
    """A lease that was granted just as its request went away, or an error that nobody waits for."""
    if not waiter.cancelled() and waiter.exception() is None:
        waiter.result().release()
