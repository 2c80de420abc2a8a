"""What Berth's own HTTP protocol (api/server/fast_http.py) offers the data plane beyond ASGI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from api.http.asgi import App, RawHeaders, Receive, Scope, Send

EXTENSION = "berth.response"
_CLIENT = "berth.client"  # what is left of it where answers go out by `send` alone

# Makes a task of a request that has none yet, by running an application on it.
ResumeAsTask = Callable[[App], None]


class ResponseChannel(Protocol):
    """The value of `scope["extensions"]["berth.response"]`."""

    def is_ready(self) -> bool:
        """Whether `send_whole` may be called: nothing has been sent, and the client takes what is."""

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send all of a response in one piece."""

    def send_piece(self, body: bytes) -> bool:
        """Send more of a body whose head went by ASGI, at once. False: not now, it has to go there, too."""

    def abort(self) -> None:
        """Close the connection after what has been sent: the client sees that the body is cut."""

    def num_unsent(self) -> int:
        """Bytes that the client has not taken yet; 0 where it keeps up."""

    def cut(self) -> None:
        """Close the connection at once, whatever is unsent."""


# What a FastPathApp's `begin` is.
Begin = Callable[[Scope, bytes, ResponseChannel, ResumeAsTask], bool]


class FastPathApp(Protocol):
    """An ASGI application that can also begin requests without a task."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        """Begin a request that has arrived whole. False: nothing has happened, call the application."""


def channel_of(scope: Scope) -> ResponseChannel | None:
    """The extension, where the server has it.

    It is taken out of the scope: the three of scope, channel and uvicorn's cycle would keep each other alive
    until the garbage collector runs, which then runs a lot.
    """
    extensions = scope.get("extensions")
    return cast("ResponseChannel | None", extensions.pop(EXTENSION, None)) if extensions else None


def without_channel(scope: Scope) -> Scope:
    """A copy of the scope for an application that answers by `send` alone, but sees to the client's pace."""
    extensions = dict(scope.get("extensions") or {})
    if (channel := extensions.pop(EXTENSION, None)) is not None:
        extensions[_CLIENT] = channel
    return {**scope, "extensions": extensions}


def client_of(scope: Scope) -> ResponseChannel | None:
    """The client's connection, where it is known but the channel isn't to be used. Taken out like that."""
    extensions = scope.get("extensions")
    return cast("ResponseChannel | None", extensions.pop(_CLIENT, None)) if extensions else None
