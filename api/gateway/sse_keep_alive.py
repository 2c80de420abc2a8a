"""Keeps a stream alive while its model starts: sends signs of life until the engine responds.

Proxies and clients drop a connection that is silent for a minute, and a model may take longer to start. The
price of a sign is the status: once one is sent it is 200, and an error becomes the stream's last event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from pydantic_core import from_json

from api.gateway.signs_of_life import SignOfLife
from api.http.asgi import Message, RawHeaders, Scope, Send
from api.http.dialects import in_dialect, speaks_anthropic
from api.http.errors import api_error, error_for
from api.http.headers import find_header
from api.http.response_channel import EXTENSION, GuardedChannel
from api.http.upstream_errors import UpstreamInvalidResponse
from instance_manager.backends.load_signs import LoadProgress

_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # else a proxy in front would buffer the comments
)
SIGN = "berth.sign"  # in a message: its body is no part of the engine's response
_MAX_ERROR_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 1024 * 1024  # of a whole response to a request for a stream
_MAX_QUOTED = 500
_NO_STREAM = f"the engine sent more than {_MAX_ANSWER_BYTES >> 10} KiB instead of the requested stream"


class SseKeepAlive:
    """Wraps the `send` of one request for server-sent events. Call `close` at the end."""

    def __init__(
        self,
        send: Send,
        interval_s: float,
        headers: RawHeaders,
        target: bytes,
        sign: SignOfLife | None = None,
        progress: Callable[[], LoadProgress | None] = lambda: None,
    ) -> None:
        """The first sign follows after `interval_s`; it starts the response to `target` with `headers`.

        `progress`: how far the model's start is.
        """
        self._sign = sign or SignOfLife()
        self._progress = progress
        self._send = send
        self._target = target
        self._interval_s = interval_s
        self._headers = [*headers, *_STREAM_HEADERS]
        if speaks_anthropic(target):  # its SDKs read the id from another header
            self._headers.append((b"request-id", find_header(headers, b"x-request-id")))
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._start)
        self._commenting: asyncio.Task[None] | None = None
        self._status = 0
        self._error: bytearray | None = None  # the body so far of a response that is not a stream
        self._is_over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def scope_for_engine(self, scope: Scope) -> Scope:
        """The request's scope: if its stream must be adapted after signs, all of it goes by `send`."""
        extensions = scope.get("extensions") or {}
        channel = extensions.get(EXTENSION)
        if channel is None or self._sign.begun is None:
            return scope
        guarded = GuardedChannel(channel, lambda: self._commenting is None)
        return {**scope, "extensions": {**extensions, EXTENSION: guarded}}

    async def send(self, message: Message) -> None:
        """An ASGI `send`."""
        if message["type"] == "http.response.start":
            self._timer.cancel()
            if self._commenting is None:
                await self._send(message)
                return
            await self._quiet()
            if not _is_events(message):
                self._status, self._error = message["status"], bytearray()
        elif self._error is None:
            if self._commenting is not None:
                message = {**message, "body": self._sign.adapt(message.get("body", b""))}
            await self._send(message)
        elif not self._is_over:
            await self._collect(self._error, message)

    async def _collect(self, collected: bytearray, message: Message) -> None:
        """Raises UpstreamInvalidResponse if the body is too long, which ends the engine's work."""
        collected += message.get("body", b"")
        has_more = message.get("more_body", False)
        is_long = len(collected) > (_MAX_ERROR_BYTES if self._status >= 400 else _MAX_ANSWER_BYTES)
        if has_more and not is_long:
            return
        self._is_over = True
        event = self._last_event(bytes(collected), is_long=is_long)
        await self._send({"type": "http.response.body", "body": event})
        if has_more:
            raise UpstreamInvalidResponse(_NO_STREAM)

    async def close(self) -> None:
        """Stop the comments."""
        self._timer.cancel()
        await self._quiet()

    def _last_event(self, body: bytes, *, is_long: bool) -> bytes:
        """A body that is not a stream, as an event; an error in an unknown format is replaced."""
        request_id = find_header(self._headers, b"x-request-id")
        if self._status < 400:
            if is_long:
                error = error_for(UpstreamInvalidResponse(_NO_STREAM))
                return self._sign.error(in_dialect(error, self._target, request_id).body, self._target)
            return self._sign.error(body, b"")
        if is_long or not _is_error(body):
            text = body[:_MAX_QUOTED].decode("utf-8", "replace")
            error = api_error(
                self._status, f"the engine responded with status {self._status}: {text}", "upstream_error"
            )
            body = in_dialect(error, self._target, request_id).body
        return self._sign.error(body, self._target)

    def _start(self) -> None:
        self._commenting = asyncio.get_running_loop().create_task(self._comment())

    async def _comment(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        while True:
            body = self._sign.write(self._progress())
            await self._send({"type": "http.response.body", "body": body, "more_body": True, SIGN: True})
            await asyncio.sleep(self._interval_s)

    async def _quiet(self) -> None:
        if self._commenting is not None:
            self._commenting.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):  # OSError: the client has disconnected
                await self._commenting


def _is_error(body: bytes) -> bool:
    """Whether it has the format of OpenAI's errors, or of Anthropic's."""
    try:
        parsed = from_json(body)
    except ValueError:
        return False
    return isinstance(parsed, dict) and isinstance(parsed.get("error"), dict)


def _is_events(start: Message) -> bool:
    """Whether the response can follow the comments as it is."""
    headers = dict(start["headers"])
    is_plain = headers.get(b"content-encoding", b"identity") == b"identity"
    is_stream = headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")
    return bool(start["status"] == 200) and is_plain and is_stream
