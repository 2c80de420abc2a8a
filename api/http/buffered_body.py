"""Reads a request's body ahead of the application, which then receives the same messages again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from api.http.asgi import Message, Receive
from api.http.client_errors import ClientGone


@dataclass(slots=True)
class BufferedBody:
    """The part of a body read so far. `body` is all of it, or None if it is longer than the limit."""

    receive: Receive  # the client's
    body: bytes | None = None
    messages: deque[Message] = field(default_factory=deque)

    async def replay(self) -> Message:
        """A `receive` for the application: first the messages read so far, then the client's next ones."""
        return self.messages.popleft() if self.messages else await self.receive()


async def buffer_body(
    receive: Receive, max_bytes: int, inspect: Callable[[bytes], None] = lambda _: None
) -> BufferedBody:
    """Read a body, up to one message beyond `max_bytes`. Raises ClientGone if the client disconnects.

    `inspect` is called with each piece and may raise to stop reading.
    """
    buffered = BufferedBody(receive)
    size = 0
    while size <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        buffered.messages.append(message)
        size += len(message.get("body", b""))
        inspect(message.get("body", b""))
        if not message.get("more_body", False):
            if size <= max_bytes:
                buffered.body = b"".join(part.get("body", b"") for part in buffered.messages)
            break
    return buffered


def replaying(body: bytes, receive: Receive, *, has_more: bool = False) -> Receive:
    """A `receive` that returns this body once, then the client's next messages."""
    is_replayed = False

    async def replay() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": body, "more_body": has_more}

    return replay
