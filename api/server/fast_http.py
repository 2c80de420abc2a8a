"""uvicorn's HTTP protocol with two things added: requests begun without a task, and answers in one piece.

ASGI costs a task, a channel and two messages per request. For the short ones that make up most requests
this is more than all the forwarding. So a request that has arrived whole is offered to the application's
`begin` first, and a whole response is written at once; where its head is the last one's
(api/http/head_cache.py) it is not even parsed. Any other server runs the same application by ASGI alone,
only slower. Built on uvicorn's internals: its version is pinned, the tests hold both ways to the same.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.http.asgi import App, RawHeaders, Scope
from api.http.head_cache import ROUTE_CACHE, CachedHead, learn
from api.http.response_channel import EXTENSION, FastPathApp
from api.server import http_1_0
from api.server.descriptors import unsent_in_kernel
from api.server.upgrades import parser_after

_MAX_MISSES = 8  # heads in a row that weren't the last one: from then on no more are learnt
_MAX_KNOWN_BODY = 64 * 1024


class FastHttpProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=FastHttpProtocol)`; with `proxy_headers` on, its short way is not taken."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._is_parsing = False
        self._fed: bytes | memoryview = b""  # what the parser is at
        self._unfed: list[bytes | memoryview] = []  # what it is to get after that
        self._is_offer = False  # of another protocol, which isn't taken: the parser stops behind the head
        self._is_between = True  # of the next request's head the parser has nothing
        self._arriving: RequestResponseCycle | None = None
        self._direct = cast(FastPathApp, self.app) if hasattr(self.app, "begin") else None
        self._known: CachedHead | None = None
        self._known_scope: dict[str, Any] = {}
        self._known_length = 0
        self._max_known_body = _MAX_KNOWN_BODY
        self._misses = 0
        self._short: _ShortRequest | None = None
        self._answered_at = 0.0

    def data_received(self, data: bytes) -> None:
        if not self._take_known(data):
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        is_first = self._is_between
        self._is_parsing = True
        self._fed = data
        super().data_received(data)
        while self._unfed:
            self._fed = self._unfed.pop(0)
            if not self.transport.is_closing():
                super().data_received(cast(bytes, self._fed))
        self._fed = b""
        self._is_parsing = False
        cycle, self._arriving = self._arriving, None
        if cycle is None:
            return
        if is_first and self._is_between and self._misses < _MAX_MISSES:
            self._learn(data, cycle)
        if not self._begin(cycle):
            self._run(self.app, cycle)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_between = False

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._is_offer = self.parser.should_upgrade() and not self._should_upgrade()
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope and http_1_0.is_for(cycle):
            http_1_0.prepare(cycle)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_between = True

    def _unsupported_upgrade_warning(self) -> None:
        """The parser has stopped behind the head; another reads on from there, as if nothing were offered."""
        stopped = sys.exception()
        if stopped is None or not self._is_offer:
            raise RuntimeError("there is no upgrade to ignore")
        self._is_offer = False
        rest = memoryview(self._fed)[stopped.args[0] :]
        self.parser, head = parser_after(self.headers, self)
        self._unfed = [head, rest]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Called when a request's head is there; its body, if it came along, is parsed right after."""
        if self._is_parsing and app is self.app:
            self._arriving = cycle
        else:
            self._run(app, cycle)

    def _run(self, app: ASGI3Application, cycle: RequestResponseCycle) -> None:
        cast(Scope, cycle.scope)["extensions"] = {EXTENSION: _CycleChannel(cycle)}
        self._start(cycle, app)

    def _start(self, cycle: RequestResponseCycle, app: Any) -> None:
        if http_1_0.is_for(cycle):
            app = http_1_0.unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _begin(self, cycle: RequestResponseCycle) -> bool:
        if self._direct is None or cycle.more_body or self.transport.is_closing():
            return False
        resume_as_task = partial(self._start, cycle)
        return self._direct.begin(
            cast(Scope, cycle.scope), bytes(cycle.body), _CycleChannel(cycle), resume_as_task
        )

    # Heads that have come before.

    def _learn(self, data: bytes, cycle: RequestResponseCycle) -> None:
        self._misses += 1
        self._known = None
        scope = cast(Scope, cycle.scope)
        if cycle.keep_alive and not cycle.waiting_for_100_continue and scope["http_version"] == "1.1":
            headers = scope["headers"].copy()
            self._known = learn(data, headers)
        if self._known is not None:
            self._known_scope = {**scope, "headers": headers, ROUTE_CACHE: self._known.route_cache}
            self._known_length = len(cycle.body)

    def _take_known(self, data: bytes) -> bool:
        """Whether this was a request with the last one's head, which is under way now."""
        if self._short is not None:
            self._short.become_cycle()  # there is more before the answer: that is for the parser
            return False
        known = self._known
        if known is None or not self._is_between or self._direct is None:
            return False
        if not self.cycle.response_complete or self.transport.is_closing():
            return False
        body = known.body_of(data)
        if body is None or len(body) > self._max_known_body:
            return False
        self._misses = 0
        if len(body) != self._known_length:
            self._known_length = len(body)
            self._known_scope["headers"] = known.headers_for(body)
        scope = self._known_scope.copy()
        request = self._short = _ShortRequest(self, scope, body)
        if not self._direct.begin(scope, body, request, request.resume_as_task):
            self._run(self.app, request.become_cycle())
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._short is not None:
            self._short.become_cycle()  # which is told
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._short is not None:
            self._short.become_cycle()
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """A request with a known head leaves the timer of the one before alone: it looks when it is due."""
        left_s = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if self._short is None and left_s <= 0:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                max(left_s, 1.0), self.timeout_keep_alive_handler
            )

    def begin_cycle(self, scope: Scope, body: bytes) -> RequestResponseCycle:
        """What uvicorn makes of a request, for one that has been begun without."""
        self._short = None
        self._unset_keepalive_if_required()
        scope["headers"] = scope["headers"].copy()
        scope["state"] = self.app_state.copy()
        self.cycle = RequestResponseCycle(
            scope=cast(Any, scope),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        self.cycle.body += body
        self.cycle.more_body = False
        self.cycle.message_event.set()
        return self.cycle

    def start_task(self, cycle: RequestResponseCycle, app: App) -> None:
        """Run an application on a request that has been begun without."""
        super()._start_asgi_task(cycle, cast(ASGI3Application, app))

    def answer_short(self, response: bytes) -> None:
        """Send all of the answer to the request that has no cycle."""
        self._short = None
        self._answered_at = self.loop.time()
        self.server_state.total_requests += 1
        self.transport.write(response)


class _ShortRequest:
    """The ResponseChannel of a request whose head was known: a cycle comes about only where it needs one."""

    __slots__ = ("_body", "_channel", "_protocol", "_scope")

    def __init__(self, protocol: FastHttpProtocol, scope: Scope, body: bytes) -> None:
        self._protocol = protocol
        self._scope = scope
        self._body = body
        self._channel: _CycleChannel | None = None

    def become_cycle(self) -> RequestResponseCycle:
        """Go on as any other request."""
        self._scope.pop(ROUTE_CACHE, None)
        cycle = self._protocol.begin_cycle(self._scope, self._body)
        self._channel = _CycleChannel(cycle)
        return cycle

    def resume_as_task(self, app: App) -> None:
        cycle = self._channel.cycle if self._channel is not None else self.become_cycle()
        self._protocol.start_task(cycle, app)

    def is_ready(self) -> bool:
        if self._channel is not None:
            return self._channel.is_ready()
        return not self._protocol.flow.write_paused

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        if self._channel is not None:
            self._channel.send_whole(status, headers, body)
            return
        protocol = self._protocol
        if protocol.server_state.default_headers:
            headers = [*protocol.server_state.default_headers, *headers]
        is_head_request = self._scope["method"] == "HEAD"
        protocol.answer_short(_whole(status, headers, body, is_head_request, keep_alive=True))

    def send_piece(self, body: bytes) -> bool:
        return self._channel is not None and self._channel.send_piece(body)

    def abort(self) -> None:
        if self._channel is not None:
            self._channel.abort()
        else:
            self._protocol.transport.close()

    def num_unsent(self) -> int:
        return self._channel.num_unsent() if self._channel is not None else 0

    def cut(self) -> None:
        self._protocol.transport.abort()


class _CycleChannel:
    """The ResponseChannel of one request."""

    __slots__ = ("cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.cycle = cycle

    def is_ready(self) -> bool:
        return not self.cycle.flow.write_paused and not self.cycle.response_started

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        cycle = self.cycle
        if cycle.disconnected:
            return
        headers = [*cycle.default_headers, *headers]
        if cycle.keep_alive and http_1_0.is_for(cycle):
            headers.append(http_1_0.KEEP_ALIVE)
        is_head_request = cycle.scope["method"] == "HEAD"
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(_whole(status, headers, body, is_head_request, keep_alive=cycle.keep_alive))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def send_piece(self, body: bytes) -> bool:
        cycle = self.cycle
        is_open = cycle.response_started and not cycle.response_complete and not cycle.disconnected
        if cycle.flow.write_paused or not is_open or not cycle.chunked_encoding:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def abort(self) -> None:
        self.cycle.disconnected = True  # what uvicorn asks before it complains of a missing end
        self.cycle.transport.close()

    def num_unsent(self) -> int:
        cycle = self.cycle
        if not cycle.flow.write_paused:
            return 0
        return cycle.transport.get_write_buffer_size() + unsent_in_kernel(cycle.transport)

    def cut(self) -> None:
        self.cycle.disconnected = True
        self.cycle.transport.abort()


def _whole(
    status: int, headers: RawHeaders, body: bytes, is_head_request: bool, *, keep_alive: bool
) -> bytes:
    """A response as it goes over the wire."""
    # The parser that these headers come from lets no line break through.
    pieces = [STATUS_LINE[status]]
    has_length = False
    for name, value in headers:
        pieces += (name, b": ", value, b"\r\n")
        has_length = has_length or name == b"content-length"
    is_bodiless = is_head_request or status == 204 or status == 304
    if not has_length and not is_bodiless:
        pieces.append(b"content-length: %d\r\n" % len(body))
    pieces.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    if not is_bodiless:
        pieces.append(body)
    return b"".join(pieces)
