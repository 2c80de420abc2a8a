"""One HTTP/1.1 connection to an engine: llhttp's parser on an asyncio protocol, feeding a sink.

Knows nothing of ASGI, leases, retries or the choice of connections (api/proxy/upstream_pool.py). Bodies are
neither decoded nor buffered. Trailers are dropped, interim responses (100, 103) skipped.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol, cast

from httptools import HttpParserError, HttpResponseParser

from api.http.asgi import RawHeaders
from api.http.upstream_errors import UpstreamBroken, UpstreamError, UpstreamInvalidResponse

MAX_HEAD_BYTES = 64 * 1024


class ResponseHead(NamedTuple):
    """Status and raw header pairs, names in lower case."""

    status: int
    headers: RawHeaders


class ResponseSink(Protocol):
    """Receives a response. Called from the event loop's callbacks, so it must not raise or block."""

    def received(self, head: ResponseHead | None, body: bytes, is_complete: bool) -> None:
        """The content of one read: the head, once; body bytes, if any; whether the response is complete.

        A complete response returns the connection to its pool.
        """

    def failed(self, error: UpstreamError) -> None:
        """The response cannot be completed; the connection is closed. The last call."""

    def resume_writing(self) -> None:
        """The write buffer has drained: `write_paused` is False again."""


class ConnectionOwner(Protocol):
    """The pool's interface for its connections."""

    def connection_opened(self, connection: UpstreamConnection) -> None:
        """The connection is open; `connection_lost` will follow."""

    def connection_idle(self, connection: UpstreamConnection) -> None:
        """An exchange has ended and the connection can be reused."""

    def connection_lost(self, connection: UpstreamConnection) -> None:
        """The connection is closed, idle or busy."""


class UpstreamConnection(asyncio.Protocol):
    """Serves one exchange at a time: `begin`, `write`, `end_request`; its sink receives the response."""

    def __init__(self, owner: ConnectionOwner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._sink: ResponseSink | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._reset()
        self.write_paused = False
        self.idle_since = 0.0

    def _reset(self) -> None:
        self._headers: RawHeaders = []
        self._status = 0
        self._body: list[bytes] = []
        self._head_bytes = 0
        self._framing_bytes = 0  # since the last piece of body: chunk extensions, trailers
        self._head_done = False
        self._head_delivered = False
        self._is_interim = False
        self._is_complete = False
        self._has_surplus = False
        self._keep_alive = False
        self._is_head_request = False
        self._request_done = False

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "busy" if self._sink else "idle"
        return f"<UpstreamConnection {state}>"

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def fileno(self) -> int:
        """The socket's descriptor, to poll for input; -1 when closed."""
        if self._transport is None:
            return -1
        sock = self._transport.get_extra_info("socket")
        return cast(int, sock.fileno()) if sock is not None else -1

    # The request's side

    def begin(self, sink: ResponseSink, data: bytes, *, is_head_request: bool, request_done: bool) -> None:
        """Start an exchange; `data` is the request's head and the part of its body at hand."""
        self._reset()
        self._sink = sink
        self._is_head_request = is_head_request
        self._request_done = request_done
        self.write(data)

    def write(self, data: bytes) -> None:
        """Send more of the request's body; no effect on a closed connection, whose sink has been notified."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def end_request(self) -> None:
        """The whole request has been written; without this call the connection is not reused."""
        self._request_done = True

    def abort(self) -> None:
        """Close at once; the sink is not called any more."""
        self._sink = None
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._owner.connection_opened(self)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._sink is not None:
            self._sink.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._sink is None or self._parser is None:
            self.abort()  # unsolicited bytes must never become the next request's response
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError as exc:
            self._has_surplus = True
            if not self._is_complete:
                if self._head_delivered:
                    self._deliver()
                self._fail(UpstreamInvalidResponse(f"the engine's response is not valid HTTP: {_cause(exc)}"))
                return
        if not self._head_done:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(
                    UpstreamInvalidResponse(f"the engine's response head exceeds {MAX_HEAD_BYTES} bytes")
                )
            return
        if self._is_complete:
            self._complete()
            return
        self._framing_bytes = 0 if self._body else self._framing_bytes + len(data)
        self._deliver()
        if self._framing_bytes > MAX_HEAD_BYTES:
            self._fail(
                UpstreamInvalidResponse(
                    f"the engine's response has {MAX_HEAD_BYTES} bytes of framing between pieces of its body"
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._parser = None  # breaks the cycle between the two
        self.write_paused = False
        self._owner.connection_lost(self)
        if self._sink is None:
            return
        if self._head_done and exc is None and self._ends_with_connection():
            self._is_complete = True
            self._complete()
            return
        where = "in the middle of its response" if self._head_done else "before responding"
        reason = f" ({exc})" if exc is not None else ""
        begun = self._head_bytes > 0
        self._fail(UpstreamBroken(f"the engine closed the connection {where}{reason}", response_begun=begun))

    # The parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer
        name = name.lower()
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise HttpParserError(f"unsupported transfer coding {value!r}")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._is_complete:
            self._has_surplus = True
            return
        parser = cast(HttpResponseParser, self._parser)
        self._status = status = parser.get_status_code()
        if status < 200:
            if status == 101:
                raise HttpParserError("status 101 without an upgrade request")
            self._is_interim = True
            self._headers = []
            return
        if status > 599:
            raise HttpParserError(f"invalid status {status}")
        self._keep_alive = parser.should_keep_alive()  # llhttp knows this only at the end of the head
        self._head_done = True
        if self._is_head_request:
            self._is_complete = True
            self._parser = HttpResponseParser(self)  # the old one waits for a body that a HEAD does not have

    def on_body(self, body: bytes) -> None:
        if self._is_complete:
            self._has_surplus = True
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = False
        else:
            self._is_complete = True

    # Progress and end of an exchange

    def _deliver(self) -> None:
        """Pass the data received so far to the sink."""
        if self._sink is None or not self._head_done:
            return
        body = self._take_body()
        if not self._head_delivered:
            self._head_delivered = True
            self._sink.received(ResponseHead(self._status, self._headers), body, False)
        elif body:
            self._sink.received(None, body, False)

    def _complete(self) -> None:
        """The response is complete: release the connection, then notify the sink."""
        sink, self._sink = self._sink, None
        head = None if self._head_delivered else ResponseHead(self._status, self._headers)
        body = self._take_body()
        if self._keep_alive and self._request_done and not self._has_surplus and not self.is_closed:
            self._owner.connection_idle(self)
        else:
            self.abort()
        if sink is not None:
            sink.received(head, body, True)

    def _fail(self, error: UpstreamError) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.failed(error)

    def _take_body(self) -> bytes:
        pieces, self._body = self._body, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _ends_with_connection(self) -> bool:
        """Whether the end of the connection ends the response."""
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in self._headers)


def _cause(error: HttpParserError) -> str:
    return str(error.__context__ or error)
