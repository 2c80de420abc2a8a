"""uvicorn's HTTP protocol with a fast path: requests begin without a task, and responses go out in one write.

ASGI costs a task, a channel and two messages per request. For short requests, the majority, this is more
than all the forwarding. So a request that has arrived whole is first offered to the application's `begin`,
and a whole response is written at once; if its head equals the previous one (api/http/head_cache.py) it is
not even parsed. Any other server runs the same application by ASGI alone, only slower. Built on uvicorn's
internals: its version is pinned, and the tests hold both paths to the same behaviour.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.http.asgi import App, RawHeaders, Scope
from api.http.head_cache import ROUTE_CACHE, CachedHead, cached_head
from api.http.response_channel import EXTENSION, FastPathApp
from api.server import http_1_0
from api.server.cycle_channel import CycleChannel, encode_whole
from api.server.upgrades import parser_after

_MAX_MISSES = 8  # heads in a row that differ from the previous one; then no more are cached
_MAX_CACHED_BODY = 64 * 1024


class FastHttpProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=FastHttpProtocol)`; `proxy_headers` disables the fast path."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._is_parsing = False
        self._parser_input: bytes | memoryview = b""  # what the parser is being fed
        self._pending_input: list[bytes | memoryview] = []  # what to feed it after that
        self._ignores_upgrade = False  # the head offers one that is declined: the parser stops after it
        self._is_between_requests = True  # the parser has no byte of the next request
        self._arrived_cycle: RequestResponseCycle | None = None
        self._fast_app = cast(FastPathApp, self.app) if hasattr(self.app, "begin") else None
        self._cached_head: CachedHead | None = None
        self._cached_scope: dict[str, Any] = {}
        self._cached_length = 0
        self._max_cached_body = _MAX_CACHED_BODY
        self._num_misses = 0
        self._fast_request: _FastRequest | None = None
        self._answered_at = 0.0

    def data_received(self, data: bytes) -> None:
        if not self._begin_cached(data):
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        is_first = self._is_between_requests
        self._is_parsing = True
        self._parser_input = data
        super().data_received(data)
        while self._pending_input:
            self._parser_input = self._pending_input.pop(0)
            if not self.transport.is_closing():
                super().data_received(cast(bytes, self._parser_input))
        self._parser_input = b""
        self._is_parsing = False
        cycle, self._arrived_cycle = self._arrived_cycle, None
        if cycle is None:
            return
        if is_first and self._is_between_requests and self._num_misses < _MAX_MISSES:
            self._cache_head(data, cycle)
        if not self._begin_parsed(cycle):
            self._run(self.app, cycle)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_between_requests = False

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._ignores_upgrade = self.parser.should_upgrade() and not self._should_upgrade()
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope and http_1_0.is_for(cycle):
            http_1_0.prepare(cycle)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_between_requests = True

    def _unsupported_upgrade_warning(self) -> None:
        """The parser has stopped after the head; a new one continues from there."""
        stopped = sys.exception()
        if stopped is None or not self._ignores_upgrade:
            raise RuntimeError("there is no upgrade to ignore")
        self._ignores_upgrade = False
        rest = memoryview(self._parser_input)[stopped.args[0] :]
        self.parser, head = parser_after(self.headers, self)
        self._pending_input = [head, rest]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Called when a request's head is complete; a body in the same data is parsed right after."""
        if self._is_parsing and app is self.app:
            self._arrived_cycle = cycle
        else:
            self._run(app, cycle)

    def _run(self, app: ASGI3Application, cycle: RequestResponseCycle) -> None:
        cast(Scope, cycle.scope)["extensions"] = {EXTENSION: CycleChannel(cycle)}
        self._start(cycle, app)

    def _start(self, cycle: RequestResponseCycle, app: Any) -> None:
        if http_1_0.is_for(cycle):
            app = http_1_0.unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _begin_parsed(self, cycle: RequestResponseCycle) -> bool:
        if self._fast_app is None or cycle.more_body or self.transport.is_closing():
            return False
        resume_as_task = partial(self._start, cycle)
        return self._fast_app.begin(
            cast(Scope, cycle.scope), bytes(cycle.body), CycleChannel(cycle), resume_as_task
        )

    # Cached heads.

    def _cache_head(self, data: bytes, cycle: RequestResponseCycle) -> None:
        self._num_misses += 1
        self._cached_head = None
        scope = cast(Scope, cycle.scope)
        if cycle.keep_alive and not cycle.waiting_for_100_continue and scope["http_version"] == "1.1":
            headers = scope["headers"].copy()
            self._cached_head = cached_head(data, headers)
        if self._cached_head is not None:
            self._cached_scope = {**scope, "headers": headers, ROUTE_CACHE: self._cached_head.route_cache}
            self._cached_length = len(cycle.body)

    def _begin_cached(self, data: bytes) -> bool:
        """Begin a request whose head equals the cached one; returns whether `data` is one."""
        if self._fast_request is not None:
            self._fast_request.to_cycle()  # more data before the response: the parser has to read it
            return False
        cached = self._cached_head
        if cached is None or not self._is_between_requests or self._fast_app is None:
            return False
        if not self.cycle.response_complete or self.transport.is_closing():
            return False
        body = cached.body_of(data)
        if body is None or len(body) > self._max_cached_body:
            return False
        self._num_misses = 0
        if len(body) != self._cached_length:
            self._cached_length = len(body)
            self._cached_scope["headers"] = cached.headers_for(body)
        scope = self._cached_scope.copy()
        request = self._fast_request = _FastRequest(self, scope, body)
        if not self._fast_app.begin(scope, body, request, request.resume_as_task):
            self._run(self.app, request.to_cycle())
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._fast_request is not None:
            self._fast_request.to_cycle()  # super() marks it as disconnected
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._fast_request is not None:
            self._fast_request.to_cycle()
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Requests with a cached head do not reset this timer, so it checks the time of the last response."""
        left_s = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if self._fast_request is None and left_s <= 0:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                max(left_s, 1.0), self.timeout_keep_alive_handler
            )

    def begin_cycle(self, scope: Scope, body: bytes) -> RequestResponseCycle:
        """Create uvicorn's cycle for a request that began without one."""
        self._fast_request = None
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
        """Run an application on a request that began without a task."""
        super()._start_asgi_task(cycle, cast(ASGI3Application, app))

    def send_fast_response(self, response: bytes) -> None:
        """Send the whole response to a request that has no cycle."""
        self._fast_request = None
        self._answered_at = self.loop.time()
        self.server_state.total_requests += 1
        self.transport.write(response)


class _FastRequest:
    """The ResponseChannel of a request with a cached head; a cycle is created only on demand."""

    __slots__ = ("_body", "_channel", "_protocol", "_scope")

    def __init__(self, protocol: FastHttpProtocol, scope: Scope, body: bytes) -> None:
        self._protocol = protocol
        self._scope = scope
        self._body = body
        self._channel: CycleChannel | None = None

    def to_cycle(self) -> RequestResponseCycle:
        """Continue as an ordinary request."""
        self._scope.pop(ROUTE_CACHE, None)
        cycle = self._protocol.begin_cycle(self._scope, self._body)
        self._channel = CycleChannel(cycle)
        return cycle

    def resume_as_task(self, app: App) -> None:
        cycle = self._channel.cycle if self._channel is not None else self.to_cycle()
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
        protocol.send_fast_response(encode_whole(status, headers, body, is_head_request, keep_alive=True))

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
