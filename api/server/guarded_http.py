"""The HTTP protocol's limits: what a client may send, how slowly, and how many may be connected at once.

A request that breaks one is answered in the usual envelope and its connection closed, before any application
has heard of it, or with the application told that the client has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from dataclasses import replace
from http import HTTPStatus
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from api.cors import Origins
from api.http.asgi import Scope
from api.http.dialects import in_dialect
from api.http.errors import ApiError
from api.http.headers import find_header, sane_request_id
from api.server.connection_limits import ConnectionLimits, no_handshake, no_http, no_room
from api.server.connection_table import ConnectionTable
from api.server.fast_http import FastHttpProtocol

_LINGER_S = 2.0
_MAX_WAITING = 16  # requests of one connection behind the one at work; what one read brings comes on top


class _Refused(Exception):
    """Stops the parser; what is to be answered stands in the protocol."""


class _PipelineFlow(FlowControl):
    """Reads on only when few requests wait for an earlier one's answer: uvicorn's pipeline has no end."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if len(self._pipeline) <= _MAX_WAITING:
            super().resume_reading()


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
        """`origins`: whose pages can read what is refused here."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._origins = origins
        self._max_known_body = min(self._max_known_body, limits.max_body_bytes)
        self._is_head = True  # between requests, and until a head is whole
        self._has_begun = False  # something of the head is there
        self._head_fed = 0  # bytes of it that the parser has, and may not have told of
        self._head_bytes = 0  # those it has told of
        self._body_bytes = 0
        self._framing_bytes = 0  # since there was last something of the body: chunk extensions, trailers
        self.url = b""  # until there is one
        self._heard_at = self._answered_at = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        self._crowd: ConnectionTable = vars(server_state).setdefault("crowd", ConnectionTable())
        self._at_work: RequestResponseCycle | None = None  # where others wait behind it
        self._refusal: ApiError | None = None
        self._is_refused = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing has been asked that is not answered."""
        if self._is_refused:
            return True
        is_answered = self._short is None and (self.cycle is None or self.cycle.response_complete)
        return self._is_head and is_answered

    @property
    def is_held_up(self) -> bool:
        """Whether it is us who don't read what it sends."""
        return self.flow.read_paused

    @property
    def answered_at(self) -> float:
        """When it last got an answer, or came, by the loop's clock."""
        return self._answered_at

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _PipelineFlow(transport, self.pipeline)
        if len(self.connections) > self._limits.max_connections and not self._make_room():
            self._refuse(no_room())
            return
        self._crowd.idle(self)
        self._deadline = self.loop.call_later(self._limits.head_timeout_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._crowd.gone(self)
        # uvicorn tells only the request that came last.
        for cycle in (self._at_work, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._stop_clock()
        self._crowd.gone(self)
        if not self.is_idle:  # its answer would be taken for an earlier request's, or the other way round
            self._refuse(no_handshake("it comes while an earlier request of its connection is unanswered"))
        elif b"#" in self.url:
            self._refuse(no_handshake("its target has a fragment (#)"))
        else:
            super().handle_websocket_upgrade()
            self._check_handshake()

    def _check_handshake(self) -> None:
        """What the WebSocket's own reader couldn't read it says nothing of, and keeps the connection."""
        protocol = cast(Any, self.transport.get_protocol())
        if protocol.handshake_initiated or self.transport.is_closing():
            return
        self.connections.discard(protocol)
        self.connections.add(self)
        self.transport.set_protocol(self)
        self._refuse(
            no_handshake("it has a body, a line of more than 8 KiB, or characters that HTTP doesn't allow")
        )

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        self._heard_at = self.loop.time()
        if self._take_known(data):
            return
        if self._is_head:
            self._head_fed += len(data)
        else:
            self._framing_bytes += len(data)
        self._parse(data)
        if self._is_refused or self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if not self._is_head:
            if self._framing_bytes > self._limits.max_head_bytes:
                self._refuse(self._limits.head_too_large())
            else:
                self._crowd.still(self, self._heard_at)
                self._wait_for_body()
        elif self._has_begun:
            if self._head_fed > self._limits.max_head_bytes:
                self._refuse(self._limits.head_too_large())
            elif self._deadline is None:
                self._deadline = self.loop.call_later(self._limits.head_timeout_s, self._head_is_late)
        elif self.cycle is not None:
            self._stop_clock()

    def _make_room(self) -> bool:
        """Close the connection that does least, if that is little enough; whether there was one."""
        guest = self._crowd.take_idlest() or self._crowd.take_stillest(self.loop.time())
        if guest is None:
            return False
        cast(GuardedHttpProtocol, guest).give_way()
        return True

    def give_way(self) -> None:
        """Close at once: to wait until the client has read what is left could take for ever."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _note_idle(self) -> None:
        if self.is_idle and not self.transport.is_closing():
            self._answered_at = self.loop.time()
            self._crowd.idle(self)

    def begin_cycle(self, scope: Scope, body: bytes) -> RequestResponseCycle:
        self._crowd.busy(self)
        return super().begin_cycle(scope, body)

    # What the client reads.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._crowd.still(self, self.loop.time())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._crowd.moves(self)

    # What the parser tells.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_begun = True
        self._head_bytes = self._body_bytes = self._framing_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_head:
            return  # a trailer: taken for a header, it would say things that nobody has checked
        self._head_bytes += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        limits = self._limits
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            raise _Refused
        if self._head_bytes > limits.max_head_bytes or len(self.headers) > limits.max_headers:
            self._stop_parser(self._limits.head_too_large())
        for name, value in self.headers:
            if name == b"content-length" and int(value) > limits.max_body_bytes:
                self._stop_parser(self._limits.body_too_large())
        before = self.cycle
        super().on_headers_complete()
        if self.pipeline and self._at_work is None:
            self._at_work = before
        self._is_head, self._has_begun = False, False
        self._crowd.busy(self)
        self._crowd.still(self, self._heard_at)
        self._stop_clock()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._framing_bytes = 0
        if self._body_bytes > self._limits.max_body_bytes:
            self._stop_parser(self._limits.body_too_large())
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_offer:
            return  # the parser takes an upgrade for made, and the body for another protocol's
        super().on_message_complete()
        self._is_head, self._head_fed = True, 0
        self._crowd.moves(self)
        self._note_idle()

    def on_response_complete(self) -> None:
        self._at_work = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self.flow.resume_reading()
        self._note_idle()

    # Time.

    def _wait_for_body(self) -> None:
        """One timer for the whole body: it looks when something last came."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._limits.body_timeout_s, self._body_is_late)

    def _body_is_late(self) -> None:
        self._deadline = None
        if self._is_head:
            return
        if self.flow.read_paused:
            self._heard_at = self.loop.time()  # it is us who don't listen
        left_s = self._heard_at + self._limits.body_timeout_s - self.loop.time()
        if left_s > 0:
            self._deadline = self.loop.call_later(left_s, self._body_is_late)
            return
        self._refuse(self._limits.body_late())

    def _head_is_late(self) -> None:
        self._deadline = None
        if not self._is_head or not self.is_idle:
            return
        if not self._has_begun:
            self.transport.close()  # connected, and never said a word
            return
        self._refuse(self._limits.head_late())

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # Refusals.

    def _stop_parser(self, error: ApiError) -> None:
        """Raises what the parser passes on as its own; uvicorn then calls `send_400_response`."""
        self._refusal = error
        raise _Refused

    def send_400_response(self, msg: str) -> None:
        """What the parser can't read, or was stopped at."""
        self._unfed.clear()
        self._refuse(self._refusal or no_http())

    def _refuse(self, error: ApiError) -> None:
        """Answer and close; only close where the answer could be taken for another request's."""
        error = self._told(error)
        self._stop_clock()
        self._is_refused = True
        cycle = self.cycle
        is_pending = cycle is not None and not cycle.response_complete
        is_own = not self._is_head  # the refused request is the one that the application works on
        if not self.pipeline and (not is_pending or (is_own and not cycle.response_started)):
            status = HTTPStatus(error.status)
            lines = [b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode())]
            lines += [name + b": " + value for name, value in error.headers]
            lines += [b"connection: close", b"", error.body]
            self.transport.write(b"\r\n".join(lines))
            self._linger()
            self._crowd.idle(self)  # until it is closed
        else:
            self.transport.close()
        if is_pending:
            cycle.disconnected = True
            cycle.message_event.set()

    def _told(self, error: ApiError) -> ApiError:
        """The error as the client reads it, by what is known of the request."""
        request_id = sane_request_id(find_header(self.headers or [], b"x-request-id"))
        error = in_dialect(error, self.url, request_id)
        headers = [*error.headers, (b"x-request-id", request_id)]
        if self._origins is not None and (origin := find_header(self.headers or [], b"origin")):
            headers = self._origins.answer(headers, origin)
        return replace(error, headers=headers)

    def _linger(self) -> None:
        """Close once the client has read the answer: at once, what it still sends would take that away."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()  # and what comes is dropped
            self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()
