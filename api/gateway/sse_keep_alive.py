"""A stream that waits for its model: comments keep the connection alive until the engine answers.

Proxies and clients give up on a connection that is silent for a minute, and a model may take longer to start.
What a comment costs is the status: once one is out it is 200, and an error comes as the stream's last event.
"""

from __future__ import annotations

import asyncio
import contextlib

from pydantic_core import from_json

from api.http.asgi import Message, RawHeaders, Send
from api.http.dialects import error_event, in_dialect, speaks_anthropic, stream_error_event
from api.http.errors import api_error
from api.http.headers import find_header
from api.http.upstream_errors import UpstreamInvalidResponse

_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy in front would keep the comments to itself
)
_COMMENT = b": waiting for the model\n\n"
_MAX_ERROR_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 1024 * 1024  # of an answer that is whole, though a stream was asked for
_MAX_QUOTED = 500
_NO_STREAM = f"in place of a stream the engine answers with more than {_MAX_ANSWER_BYTES >> 10} KiB at once"


class SseKeepAlive:
    """Wraps the `send` of one request whose answer is to be server-sent events. `close` it in the end."""

    def __init__(self, send: Send, interval_s: float, headers: RawHeaders, target: bytes) -> None:
        """The first comment after `interval_s`; `headers` of the answer to `target` that it then begins."""
        self._send = send
        self._target = target
        self._interval_s = interval_s
        self._headers = [*headers, *_STREAM_HEADERS]
        if speaks_anthropic(target):  # its SDKs read the id by another name
            self._headers.append((b"request-id", find_header(headers, b"x-request-id")))
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._start)
        self._commenting: asyncio.Task[None] | None = None
        self._status = 0
        self._error: bytearray | None = None  # the body of an answer that is no stream, so far
        self._is_over = False

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
            await self._send(message)
        elif not self._is_over:
            await self._collect(self._error, message)

    async def _collect(self, collected: bytearray, message: Message) -> None:
        """Raises UpstreamInvalidResponse where there is more than anybody waits for: the engine needn't go on."""
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
        """No more comments."""
        self._timer.cancel()
        await self._quiet()

    def _last_event(self, body: bytes, *, is_long: bool) -> bytes:
        """What is no stream, as an event; an error that no client would know for one is said anew."""
        if self._status < 400:
            if is_long:
                return stream_error_event(
                    UpstreamInvalidResponse(_NO_STREAM),
                    self._target,
                    find_header(self._headers, b"x-request-id"),
                )
            return error_event(body, b"")
        if is_long or not _is_error(body):
            text = body[:_MAX_QUOTED].decode("utf-8", "replace")
            error = api_error(self._status, f"the engine answered {self._status}: {text}", "upstream_error")
            request_id = find_header(self._headers, b"x-request-id")
            body = in_dialect(error, self._target, request_id).body
        return error_event(body, self._target)

    def _start(self) -> None:
        self._commenting = asyncio.get_running_loop().create_task(self._comment())

    async def _comment(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        while True:
            await self._send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
            await asyncio.sleep(self._interval_s)

    async def _quiet(self) -> None:
        if self._commenting is not None:
            self._commenting.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):  # the client has left: others see it
                await self._commenting


def _is_error(body: bytes) -> bool:
    """Whether it has the shape of OpenAI's errors, or of Anthropic's."""
    try:
        told = from_json(body)
    except ValueError:
        return False
    return isinstance(told, dict) and isinstance(told.get("error"), dict)


def _is_events(start: Message) -> bool:
    """Whether the answer can go on where comments have begun."""
    headers = dict(start["headers"])
    is_plain = headers.get(b"content-encoding", b"identity") == b"identity"
    is_stream = headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")
    return bool(start["status"] == 200) and is_plain and is_stream
