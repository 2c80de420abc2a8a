"""A look at a request's body before it goes on: what has been read is handed on in the same messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from api.http.asgi import Message, Receive
from api.http.leases import ClientGone


@dataclass(slots=True)
class BufferedBody:
    """What has been read of a body. `body` is all of it, or None where it is longer than was wanted."""

    receive: Receive  # the client's
    body: bytes | None = None
    messages: deque[Message] = field(default_factory=deque)

    async def replay(self) -> Message:
        """A `receive` for whom the body is meant: what has been read, then what is still to come."""
        return self.messages.popleft() if self.messages else await self.receive()


async def buffer_body(
    receive: Receive, max_bytes: int, look: Callable[[bytes], None] = lambda _: None
) -> BufferedBody:
    """Read a body, but hardly more than `max_bytes` of it. Raises ClientGone where the client leaves.

    `look` is shown each piece, and raises where no more of it is wanted.
    """
    buffered = BufferedBody(receive)
    size = 0
    while size <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        buffered.messages.append(message)
        size += len(message.get("body", b""))
        look(message.get("body", b""))
        if not message.get("more_body", False):
            if size <= max_bytes:
                buffered.body = b"".join(part.get("body", b"") for part in buffered.messages)
            break
    return buffered


def replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the new body once, then what the client still does (leave)."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
