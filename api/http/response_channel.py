"""The extension of ASGI that Berth's own HTTP protocol (api/server/protocol.py) offers the data plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from api.http.asgi import App, RawHeaders, Receive, Scope, Send

EXTENSION = "berth.response"
_TRANSLATED = "berth.translated"
_CLIENT = "berth.client"  # the channel of a request whose response must go out by `send`

# Turns a request that has no task yet into one, by running an application on it.
ResumeAsTask = Callable[[App], None]


class ResponseChannel(Protocol):
    """The value of `scope["extensions"]["berth.response"]`."""

    def is_ready(self) -> bool:
        """Whether `send_whole` may be called: nothing has been sent, and the client is reading."""

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send a whole response in one write."""

    def send_piece(self, body: bytes) -> bool:
        """Send more of a body whose head went by ASGI, at once. False: send this piece by ASGI instead."""

    def abort(self) -> None:
        """Close the connection after the data sent so far: the client sees that the body is cut off."""

    def num_unsent(self) -> int:
        """Bytes that the client has not received yet; 0 if it keeps up."""

    def cut(self) -> None:
        """Close the connection at once, discarding unsent data."""


class GuardedChannel:
    """A channel that is used only while `is_open` says so; otherwise everything goes by `send`."""

    __slots__ = ("_channel", "_is_open")

    def __init__(self, channel: ResponseChannel, is_open: Callable[[], bool]) -> None:
        self._channel = channel
        self._is_open = is_open

    def is_ready(self) -> bool:
        return self._is_open() and self._channel.is_ready()

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        self._channel.send_whole(status, headers, body)

    def send_piece(self, body: bytes) -> bool:
        return self._is_open() and self._channel.send_piece(body)

    def abort(self) -> None:
        self._channel.abort()

    def num_unsent(self) -> int:
        return self._channel.num_unsent()

    def cut(self) -> None:
        self._channel.cut()


class FastPathApp(Protocol):
    """An ASGI application that can also begin requests without a task."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        """Begin a request that has arrived whole. False: nothing was done, call the application."""


# The type of `FastPathApp.begin`.
Begin = Callable[[Scope, bytes, ResponseChannel, ResumeAsTask], bool]


class Handler:
    """Serves a request by `app`, or by `begin` if there is a fast path.

    While it `holds`, it also serves later requests on the connection with an equal head but for the length.
    """

    __slots__ = ("_app", "_begin", "_lasts")

    def __init__(self, app: App, begin: Begin | None = None, *, lasts: bool = True) -> None:
        """`lasts`: False if it is for one request only."""
        self._app = app
        self._begin = begin
        self._lasts = lasts

    def holds(self) -> bool:
        return self._lasts

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        """As `FastPathApp.begin`."""
        return self._begin is not None and self._begin(scope, body, channel, resume_as_task)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def is_translated(scope: Scope) -> bool:
    """Whether an adapter of another protocol made this request, and reads its response."""
    return bool(scope.get(_TRANSLATED))


def as_translated(scope: Scope) -> Scope:
    """A copy of the scope for the request that an adapter has made of it; its response goes by `send`."""
    return {**without_channel(scope), _TRANSLATED: True}


def channel_of(scope: Scope) -> ResponseChannel | None:
    """The extension, if the server has it.

    It is removed from the scope: otherwise scope and channel would form a reference cycle
    per request, and the garbage collector would run all the time.
    """
    extensions = scope.get("extensions")
    return cast("ResponseChannel | None", extensions.pop(EXTENSION, None)) if extensions else None


def without_channel(scope: Scope) -> Scope:
    """A copy of the scope for an application that responds by `send` alone, but checks for slow clients."""
    extensions = dict(scope.get("extensions") or {})
    if (channel := extensions.pop(EXTENSION, None)) is not None:
        extensions[_CLIENT] = channel
    return {**scope, "extensions": extensions}


def client_of(scope: Scope) -> ResponseChannel | None:
    """The client's connection, if known but not to be used as a channel. Removed from the scope too."""
    extensions = scope.get("extensions")
    return cast("ResponseChannel | None", extensions.pop(_CLIENT, None)) if extensions else None
