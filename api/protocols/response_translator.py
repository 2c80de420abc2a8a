"""Translates the inner application's response from OpenAI's format into a protocol's.

Streams are translated event by event as they arrive, with back-pressure from the client to the engine. Other
responses are short and translated when complete. Knows nothing of request bodies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Generic

from api.http.asgi import Message, RawHeaders, Send
from api.http.headers import find_header
from api.http.off_loop import off_loop
from api.http.respond import send_response
from api.protocols.base import (
    EVENT_STREAM,
    ErrorDetail,
    InvalidProtocolRequest,
    InvalidResponse,
    ProtocolAdapter,
    RequestT,
    StreamTranslator,
    to_json,
)
from api.protocols.errors import (
    AdapterFailed,
    ask_adapter,
    error_response,
    failure_of,
    read_error,
    read_object,
    upstream_error,
)
from api.protocols.sse import EventReader, EventTooLong, SseComment, SseEvent

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 1024 * 1024

# Headers that describe the inner application's body, not ours.
_BODY_HEADERS = frozenset(
    {b"content-length", b"content-type", b"content-encoding", b"transfer-encoding", b"etag"}
)

# An adapter that finds the request invalid after it has been served is itself at fault.
_ADAPTER_ERRORS = (AdapterFailed, InvalidProtocolRequest)


class TranslationStopped(Exception):
    """Stops the inner application: an error has been sent to the client."""


class ResponseTranslator(Generic[RequestT]):
    """Translates one response. The inner application calls `send`; call `finish` when it returns."""

    def __init__(
        self,
        adapter: ProtocolAdapter[RequestT],
        request: RequestT,
        translator: StreamTranslator | None,
        send: Send,
        request_id: bytes,
        *,
        warning: bytes = b"",
    ) -> None:
        """`warning`: the value of a `Warning` header to be added; empty = none."""
        self._adapter = adapter
        self._added: RawHeaders = [(name, request_id) for name in adapter.headers_with_id]
        if warning:
            self._added.append((b"warning", warning))
        self._request = request
        self._translator = translator
        self._send = send
        self._request_id = request_id
        self._sent_status = 0
        self._status = 0  # of the inner application's response; 0 = not begun
        self._headers: RawHeaders = []
        self._write: Callable[[bytes, bool], Awaitable[None]] = self._drop
        self._collected = bytearray()
        self._stream: StreamTranslation | None = None
        self._is_complete = False

    @property
    def status(self) -> int:
        """Of the response to the client."""
        return self._sent_status

    async def send(self, message: Message) -> None:
        """ASGI's `send` for the inner application."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = [pair for pair in message["headers"] if pair[0] not in _BODY_HEADERS]
            self._headers += self._added
            await self._begin(message["headers"])
        elif message["type"] == "http.response.body" and not self._is_complete:
            await self._write(message.get("body", b""), not message.get("more_body", False))

    async def finish(self) -> bool:
        """The inner application has returned. False: our response is cut off and must not end cleanly."""
        if not self._is_complete and self._status and self._stream is None:
            # Nothing has been sent yet, so an error is still possible.
            await self._send_error(upstream_error("the engine's response ended before it was complete"))
        return self._is_complete or self._stream is None

    async def _begin(self, headers: RawHeaders) -> None:
        content_type = find_header(headers, b"content-type").lower()
        if self._status >= 400:
            self._write = self._collect_error
        elif self._status >= 300 or find_header(headers, b"content-encoding") not in (b"", b"identity"):
            await self._stop(
                upstream_error(f"the engine sent a redirect or an encoded body (status {self._status})")
            )
        elif not content_type.startswith(EVENT_STREAM.encode()):
            self._write = self._collect_answer
        elif self._translator is None:
            await self._stop(upstream_error("the engine sent a stream, which was not requested"))
        else:
            await self._begin_stream(self._translator)

    async def _begin_stream(self, translator: StreamTranslator) -> None:
        if translator.is_collected:
            self._write = partial(self._collect_stream, StreamTranslation(self._adapter, translator))
            return
        self._stream = StreamTranslation(self._adapter, translator)
        self._write = self._pass_on
        headers = [*self._headers, (b"content-type", translator.media_type.encode())]
        if not find_header(headers, b"x-accel-buffering"):
            headers.append((b"x-accel-buffering", b"no"))
        self._sent_status = self._status
        await self._send({"type": "http.response.start", "status": self._status, "headers": headers})

    async def _drop(self, _body: bytes, _is_last: bool) -> None:
        """Ignore the rest after an error has been sent."""

    async def _collect_error(self, body: bytes, is_last: bool) -> None:
        self._collected += body[: MAX_ERROR_BYTES - len(self._collected)]
        if is_last:
            await self._send_error(read_error(self._status, bytes(self._collected)))

    async def _collect_answer(self, body: bytes, is_last: bool) -> None:
        self._collected += body
        if len(self._collected) > MAX_ANSWER_BYTES:
            await self._stop(upstream_error(f"the engine's response exceeds {MAX_ANSWER_BYTES} bytes"))
        elif is_last:
            try:
                translated = await off_loop(len(self._collected), self._translate_answer)
            except InvalidResponse as exc:
                await self._send_error(upstream_error(f"the engine's response is invalid: {exc}"))
            except _ADAPTER_ERRORS:
                await self._send_error(failure_of(self._adapter))
            else:
                await self._send_whole(self._status, translated)

    def _translate_answer(self) -> bytes:
        answer = read_object(bytes(self._collected))
        adapter = self._adapter
        return ask_adapter(adapter, lambda: to_json(adapter.from_openai(answer, self._request)))

    async def _pass_on(self, body: bytes, is_last: bool) -> None:
        stream = self._stream
        if stream is None:
            raise RuntimeError("a stream's body before its head")
        pieces: list[bytes] = []
        try:
            error = stream.translate(body, pieces, is_last=is_last)
        except (InvalidResponse, EventTooLong) as exc:
            await self._stop(upstream_error(f"the engine's stream is invalid: {exc}"), pieces)
        except _ADAPTER_ERRORS:
            await self._stop(failure_of(self._adapter), pieces)
        else:
            if error is not None:
                await self._report(error, pieces)
            elif any(pieces) or is_last:
                self._is_complete = is_last
                await self._send_piece(pieces, more_body=not is_last)

    async def _collect_stream(self, stream: StreamTranslation, body: bytes, is_last: bool) -> None:
        pieces: list[bytes] = []
        try:
            error = stream.translate(body, pieces, is_last=is_last)
        except (InvalidResponse, EventTooLong) as exc:
            await self._stop(upstream_error(f"the engine's stream is invalid: {exc}"))
        except _ADAPTER_ERRORS:
            await self._stop(failure_of(self._adapter))
        else:
            self._collected += b"".join(pieces)
            if error is not None:
                await self._report(error, [])
            elif is_last:
                await self._send_whole(self._status, bytes(self._collected))

    # An engine that reports an error ends by itself; an error found here stops the engine.

    async def _stop(self, error: ErrorDetail, before: list[bytes] | None = None) -> None:
        await self._report(error, before or [])
        raise TranslationStopped

    async def _report(self, error: ErrorDetail, before: list[bytes]) -> None:
        """Send an error to the client, after `before` if a stream has begun."""
        self._write = self._drop
        if self._stream is None:
            await self._send_error(error)
        else:
            error = replace(error, request_id=self._request_id.decode("latin-1"))
            self._is_complete = self._stream.ends_with_error
            await self._send_piece([*before, self._stream.error(error)], more_body=not self._is_complete)

    async def _send_error(self, error: ErrorDetail) -> None:
        error = replace(error, request_id=self._request_id.decode("latin-1"))
        status, body = error_response(self._adapter, error)
        await self._send_whole(status, to_json(body))

    async def _send_whole(self, status: int, body: bytes) -> None:
        self._is_complete = True
        self._sent_status = status
        await send_json(self._send, status, self._headers, body, self._request_id)

    async def _send_piece(self, pieces: list[bytes], *, more_body: bool) -> None:
        await self._send({"type": "http.response.body", "body": b"".join(pieces), "more_body": more_body})


class StreamTranslation:
    """Translates one stream from OpenAI's format into another protocol's."""

    def __init__(self, adapter: ProtocolAdapter[Any], translator: StreamTranslator) -> None:
        self._adapter = adapter
        self._translator = translator
        self._reader = EventReader()
        self._is_ended = False
        self.ends_with_error = translator.ends_with_error

    def translate(self, body: bytes, pieces: list[bytes], *, is_last: bool) -> ErrorDetail | None:
        """Append the translation of `body` to `pieces`; returns the error, if the stream reports one.

        Raises InvalidResponse, EventTooLong and what `ask_adapter` raises.
        """
        for item in self._reader.feed(body):
            if isinstance(item, SseComment):
                if not self._is_ended:
                    comment = partial(self._translator.comment, item.text)
                    pieces.append(ask_adapter(self._adapter, comment))
            elif not self._is_ended:
                error = self._translate_event(item, pieces)
                if error is not None:
                    return error
        if is_last and not self._reader.is_between_events:
            raise InvalidResponse("it ends in the middle of an event")
        if is_last and not self._is_ended:
            if not self._translator.may_end():
                raise InvalidResponse("it ended before it was complete")
            self._end(pieces)
        return None

    def error(self, error: ErrorDetail) -> bytes:
        """An error as the stream's last piece; empty if the adapter fails: then the cut-off must do."""
        _, body = error_response(self._adapter, error)
        try:
            return ask_adapter(self._adapter, lambda: self._translator.error(body))
        except _ADAPTER_ERRORS:
            return b""

    def _translate_event(self, event: SseEvent, pieces: list[bytes]) -> ErrorDetail | None:
        if event.data.strip() == b"[DONE]":
            self._end(pieces)
            return None
        chunk = read_object(event.data)
        if chunk.get("error"):
            return read_error(0, event.data)
        piece = ask_adapter(self._adapter, lambda: self._translator.event(chunk))
        if not piece and _is_sign_of_life(chunk):
            piece = ask_adapter(self._adapter, lambda: self._translator.comment(b" waiting for the model"))
        pieces.append(piece)
        return None

    def _end(self, pieces: list[bytes]) -> None:
        self._is_ended = True
        pieces.append(ask_adapter(self._adapter, self._translator.end))


def _is_sign_of_life(chunk: Mapping[str, Any]) -> bool:
    """Whether it says nothing: another node sends such chunks while its model loads."""
    match chunk.get("choices"):
        case [{"delta": {**delta}, "finish_reason": None}]:
            return not delta
    return False


async def send_json(send: Send, status: int, headers: RawHeaders, body: bytes, request_id: bytes) -> None:
    """Send a whole JSON response; the request's id is added unless `headers` have one."""
    headers = [
        *headers,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    if not find_header(headers, b"x-request-id"):
        headers.append((b"x-request-id", request_id))
    await send_response(send, status, headers, body)
