"""One request and its response: ASGI's `receive` and `send`, and the ResponseChannel that is faster."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from api.http.asgi import App, Message, RawHeaders, Scope
from api.http.head_cache import ROUTE_CACHE
from api.server.descriptors import unsent_in_kernel
from api.server.responses import StreamedResponse, encode_whole

log = logging.getLogger("berth.server")

_MAX_UNREAD_BYTES = 64 * 1024  # of a body that the application has not received yet
_FAILED = b"Internal Server Error"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(Protocol):
    """What a request needs of its connection."""

    transport: asyncio.Transport
    is_write_paused: bool
    writable: asyncio.Event

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def start_task(self, cycle: RequestCycle, app: App) -> None: ...
    def on_request_end(self) -> None: ...
    def on_response_end(self) -> None: ...


class RequestCycle:
    """One request. By default it has arrived whole, and its connection is kept."""

    def __init__(self, connection: Connection, scope: Scope, body: bytes | bytearray) -> None:
        self.scope = scope
        self.body = body  # what the application has not received yet
        self.has_more_body = False
        self.awaits_continue = False  # the client sends the body only after an interim response
        self.keep_alive = True
        self.is_started = self.is_complete = False  # the response's head has been sent; all of it
        self.is_disconnected = False  # nothing more is sent
        self._connection = connection
        self._is_end_read = False
        self._news: asyncio.Event | None = None
        self._response: StreamedResponse | None = None

    async def run(self, app: App) -> None:
        """Run an application, and end what it leaves unfinished."""
        try:
            await app(self.scope, self.receive, self.send)
            if not (self.is_complete or self.is_disconnected):
                raise RuntimeError("the application has returned without a complete response")
        except BaseException as error:
            log.error("exception in the application", exc_info=error)
            if self.is_started:
                self._connection.transport.close()
            else:
                self.keep_alive = False
                self.send_whole(500, [(b"content-type", b"text/plain; charset=utf-8")], _FAILED)
        self.scope = {}  # it refers to this object

    def disconnect(self) -> None:
        self.is_disconnected = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()

    # The parser's calls.

    def on_body(self, piece: bytes) -> None:
        if not self.is_complete:
            self.body += piece
            if len(self.body) > _MAX_UNREAD_BYTES:
                self._connection.pause_reading()
            self._wake()

    def on_end(self) -> None:
        self.has_more_body = False
        self._wake()
        self._connection.on_request_end()

    # ASGI.

    async def receive(self) -> Message:
        connection = self._connection
        if self.awaits_continue and not self.is_started and not connection.transport.is_closing():
            connection.transport.write(_CONTINUE)
            self.awaits_continue = False
        while not (self.is_disconnected or self.is_complete):
            connection.resume_reading()
            if self.body or not (self.has_more_body or self._is_end_read):
                body, self.body = bytes(self.body), bytearray()
                self._is_end_read = not self.has_more_body
                return {"type": "http.request", "body": body, "more_body": self.has_more_body}
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._connection.is_write_paused and not self.is_disconnected:
            await self._connection.writable.wait()
        if self.is_disconnected:
            return
        if self.is_complete or message["type"] != f"http.response.{'body' if self.is_started else 'start'}":
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")
        if self._response is None:
            headers = message.get("headers", [])
            self._response = StreamedResponse(message["status"], headers, self.scope, self.keep_alive)
            self.keep_alive = self._response.keep_alive
            self.is_started = True
            self._connection.transport.write(self._response.head)
            return
        is_last = not message.get("more_body", False)
        if piece := self._response.encode(message.get("body", b""), is_last=is_last):
            self._connection.transport.write(piece)
        if is_last:
            self._complete()

    def _complete(self) -> None:
        self.is_complete = True
        if self._news is not None:
            self._news.set()
        if not self.keep_alive:
            self._connection.transport.close()
        self._connection.on_response_end()

    # ResponseChannel, and ResumeAsTask.

    def resume_as_task(self, app: App) -> None:
        scope = self.scope
        if scope.pop(ROUTE_CACHE, None) is not None:  # the next request has the same dictionaries
            scope["headers"], scope["state"] = scope["headers"].copy(), scope["state"].copy()
        self._connection.start_task(self, app)

    def is_ready(self) -> bool:
        return not self._connection.is_write_paused and not self.is_started

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        if self.is_disconnected:
            return
        self.is_started = True
        response = encode_whole(status, headers, body, self.scope, self.keep_alive)
        self._connection.transport.write(response)
        self._complete()

    def send_piece(self, body: bytes) -> bool:
        response, is_over = self._response, self.is_complete or self.is_disconnected
        if response is None or not response.is_chunked or is_over or self._connection.is_write_paused:
            return False
        self._connection.transport.write(response.encode(body, is_last=False))
        return True

    def abort(self) -> None:
        self.is_disconnected = True
        self._connection.transport.close()

    def num_unsent(self) -> int:
        connection = self._connection
        if not connection.is_write_paused:
            return 0
        return connection.transport.get_write_buffer_size() + unsent_in_kernel(connection.transport)

    def cut(self) -> None:
        self.is_disconnected = True
        self._connection.transport.abort()
