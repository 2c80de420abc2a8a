"""The HTTP protocol's limits: on what a client sends, how slowly, and on the number of connections.

A request that exceeds one gets an error in the usual envelope, and its connection is closed: before the
application sees the request, or else the application sees a disconnect.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from api.cors import Origins
from api.http.asgi import Scope
from api.http.errors import ApiError
from api.server.connection_limits import ConnectionLimits, malformed_handshake, malformed_http
from api.server.connection_table import ConnectionTable
from api.server.fast_http import FastHttpProtocol
from api.server.pipeline_flow import PipelineFlow
from api.server.refusals import encode_refusal, in_client_form

_LINGER_S = 2.0


class _ParserStopped(Exception):
    """Stops the parser; the protocol's `_refusal` is the response."""


class GuardedHttpProtocol(FastHttpProtocol):
    """For `uvicorn.Config(http=…)`, with the limits bound by `functools.partial`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
        origins: Origins | None = None,
    ) -> None:
        """`origins`: pages of these origins can read the errors sent here."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._origins = origins
        self._max_cached_body = min(self._max_cached_body, limits.max_body_bytes)
        self._expects_head = True  # between requests, and until a head is complete
        self._has_head_bytes = False  # part of the head has arrived
        self._head_fed = 0  # bytes of it fed to the parser, reported or not
        self._head_bytes = 0  # those the parser has reported
        self._body_bytes = 0
        self._framing_bytes = 0  # since the last piece of body: chunk extensions, trailers
        self.url = b""  # no request yet
        self._last_received_at = self._answered_at = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        self._table: ConnectionTable = vars(server_state).setdefault("connection_table", ConnectionTable())
        self._current_cycle: RequestResponseCycle | None = None  # if others wait behind it
        self._refusal: ApiError | None = None
        self._is_refused = False

    @property
    def is_idle(self) -> bool:
        """Whether every request has been answered."""
        if self._is_refused:
            return True
        is_answered = self._fast_request is None and (self.cycle is None or self.cycle.response_complete)
        return self._expects_head and is_answered

    @property
    def is_read_paused(self) -> bool:
        """Whether we have paused reading from it."""
        return self.flow.read_paused

    @property
    def answered_at(self) -> float:
        """Time of the last response, or of the connection's start, by the loop's clock."""
        return self._answered_at

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = PipelineFlow(transport, self.pipeline)
        if len(self.connections) > self._limits.max_connections and not self._evict_one():
            self._refuse(self._limits.too_many_connections())
            return
        self._table.mark_idle(self)
        self._deadline = self.loop.call_later(self._limits.head_timeout_s, self._on_head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._table.remove(self)
        # uvicorn notifies only the latest request.
        for cycle in (self._current_cycle, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._stop_clock()
        self._table.remove(self)
        if not self.is_idle:  # its response would be taken for an earlier request's, or vice versa
            self._refuse(malformed_handshake("an earlier request on this connection is still unanswered"))
        elif b"#" in self.url:
            self._refuse(malformed_handshake("its path contains '#'; write it as %23"))
        else:
            super().handle_websocket_upgrade()
            self._check_handshake()

    def _check_handshake(self) -> None:
        """Refuse a handshake that uvicorn's WebSocket parser rejects without answering or closing."""
        protocol = cast(Any, self.transport.get_protocol())
        if protocol.handshake_initiated or self.transport.is_closing():
            return
        self.connections.discard(protocol)
        self.connections.add(self)
        self.transport.set_protocol(self)
        self._refuse(
            malformed_handshake(
                "it has a body, a line of more than 8 KiB, or characters that HTTP does not allow"
            )
        )

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        self._last_received_at = self.loop.time()
        if self._begin_cached(data):
            return
        if self._expects_head:
            self._head_fed += len(data)
        else:
            self._framing_bytes += len(data)
        self._parse(data)
        if self._is_refused or self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if not self._expects_head:
            if self._framing_bytes > self._limits.max_head_bytes:
                self._refuse(self._limits.head_too_large())
            else:
                self._table.mark_stalled(self, self._last_received_at)
                self._wait_for_body()
        elif self._has_head_bytes:
            if self._head_fed > self._limits.max_head_bytes:
                self._refuse(self._limits.head_too_large())
            elif self._deadline is None:
                self._deadline = self.loop.call_later(self._limits.head_timeout_s, self._on_head_timeout)
        elif self.cycle is not None:
            self._stop_clock()

    def _evict_one(self) -> bool:
        """Close the longest idle or stalled connection; returns whether there was one."""
        connection = self._table.pop_longest_idle() or self._table.pop_longest_stalled(self.loop.time())
        if connection is None:
            return False
        cast(GuardedHttpProtocol, connection).evict()
        return True

    def evict(self) -> None:
        """Close at once: waiting until the client has read unsent data could take for ever."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _note_idle(self) -> None:
        if self.is_idle and not self.transport.is_closing():
            self._answered_at = self.loop.time()
            self._table.mark_idle(self)

    def begin_cycle(self, scope: Scope, body: bytes) -> RequestResponseCycle:
        self._table.mark_busy(self)
        return super().begin_cycle(scope, body)

    # Reading by the client.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._table.mark_stalled(self, self.loop.time())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._table.mark_moving(self)

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_head_bytes = True
        self._head_bytes = self._body_bytes = self._framing_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._expects_head:
            return  # a trailer: taken for a header, it would bypass all checks
        self._head_bytes += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        limits = self._limits
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            raise _ParserStopped
        if self._head_bytes > limits.max_head_bytes or len(self.headers) > limits.max_headers:
            self._stop_parser(self._limits.head_too_large())
        for name, value in self.headers:
            if name == b"content-length" and int(value) > limits.max_body_bytes:
                self._stop_parser(self._limits.body_too_large())
        before = self.cycle
        super().on_headers_complete()
        if self.pipeline and self._current_cycle is None:
            self._current_cycle = before
        self._expects_head, self._has_head_bytes = False, False
        self._table.mark_busy(self)
        self._table.mark_stalled(self, self._last_received_at)
        self._stop_clock()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._framing_bytes = 0
        if self._body_bytes > self._limits.max_body_bytes:
            self._stop_parser(self._limits.body_too_large())
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._ignores_upgrade:
            return  # the parser assumes the upgrade, and takes the body for the other protocol's
        super().on_message_complete()
        self._expects_head, self._head_fed = True, 0
        self._table.mark_moving(self)
        self._note_idle()

    def on_response_complete(self) -> None:
        self._current_cycle = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self.flow.resume_reading()
        self._note_idle()

    # Time.

    def _wait_for_body(self) -> None:
        """One timer for the whole body; it checks when data last arrived."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._limits.body_timeout_s, self._on_body_timeout)

    def _on_body_timeout(self) -> None:
        self._deadline = None
        if self._expects_head:
            return
        if self.flow.read_paused:
            self._last_received_at = self.loop.time()  # we have paused reading, so the client is not late
        left_s = self._last_received_at + self._limits.body_timeout_s - self.loop.time()
        if left_s > 0:
            self._deadline = self.loop.call_later(left_s, self._on_body_timeout)
            return
        self._refuse(self._limits.body_timed_out())

    def _on_head_timeout(self) -> None:
        self._deadline = None
        if not self._expects_head or not self.is_idle:
            return
        if not self._has_head_bytes:
            self.transport.close()  # connected and sent nothing
            return
        self._refuse(self._limits.head_timed_out())

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # Refusals.

    def _stop_parser(self, error: ApiError) -> None:
        """Raise out of the parser's callback; uvicorn then calls `send_400_response`."""
        self._refusal = error
        raise _ParserStopped

    def send_400_response(self, msg: str) -> None:
        """Called for what the parser rejects, and for `_stop_parser`."""
        self._pending_input.clear()
        self._refuse(self._refusal or malformed_http())

    def _refuse(self, error: ApiError) -> None:
        """Send the error and close; only close if the error could be taken for another request's response."""
        error = in_client_form(error, self.url, self.headers or [], self._origins)
        self._stop_clock()
        self._is_refused = True
        cycle = self.cycle
        is_pending = cycle is not None and not cycle.response_complete
        is_own = not self._expects_head  # the application is serving the refused request
        if not self.pipeline and (not is_pending or (is_own and not cycle.response_started)):
            self.transport.write(encode_refusal(error))
            self._linger()
            self._table.mark_idle(self)  # may be evicted until it is closed
        else:
            self.transport.close()
        if is_pending:
            cycle.disconnected = True
            cycle.message_event.set()

    def _linger(self) -> None:
        """Close after the client has read the response: closing with unread input resets a connection."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()  # incoming data is dropped
            self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()
