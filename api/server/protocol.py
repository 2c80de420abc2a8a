"""The HTTP/1.1 server: one HttpProtocol per connection, with limits and an optional fast path.

A request that exceeds a limit gets an error in the usual envelope, and its connection is closed: before the
application sees the request, or else the application sees a disconnect. uvicorn starts and stops the server;
of uvicorn only what it passes to the constructor is used, and its WebSocket protocol (guarded_ws.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from api.cors import Origins
from api.http.asgi import App, Scope
from api.http.errors import ApiError, RequestRefused
from api.http.headers import find_header
from api.http.response_channel import EXTENSION
from api.server.connection_table import ConnectionTable
from api.server.fast_path import FastPath
from api.server.guarded_ws import start_websocket
from api.server.limits import ConnectionLimits
from api.server.request_cycle import RequestCycle
from api.server.request_parser import OnLate, RequestParser
from api.server.responses import encode_refusal

_LINGER_S = 2.0
_MAX_WAITING = 16  # pipelined requests behind the current one; those of the last read come on top


@dataclass(frozen=True, slots=True)
class HttpServer:
    """What the connections of one server share."""

    limits: ConnectionLimits
    origins: Origins | None = None  # pages of these origins can read the errors sent here
    has_fast_path: bool = True  # without it the same application runs by ASGI alone, only slower
    table: ConnectionTable = field(default_factory=ConnectionTable)

    def protocol(self) -> Any:
        """For `uvicorn.Config(http=…)`."""
        return partial(HttpProtocol, self)


class HttpProtocol(asyncio.Protocol):
    """One connection. Adds no headers (`Date`, `Server`) and logs nothing: the application does."""

    transport: asyncio.Transport

    def __init__(
        self, server: HttpServer, config: Config, server_state: ServerState, app_state: Any, _loop: Any = None
    ) -> None:
        app: Any = config.loaded_app
        self._app, self._config, self._server_state, self._app_state = app, config, server_state, app_state
        self._server, self._table = server, server.table
        self._loop: asyncio.AbstractEventLoop = _loop or asyncio.get_running_loop()
        self.answered_at = self._loop.time()  # time of the last response, or of the connection's start
        can_begin = server.has_fast_path and hasattr(app, "begin")
        self._fast_path = FastPath(app, server.limits.max_body_bytes) if can_begin else None
        self._parser = RequestParser(
            server.limits, self._on_head, config.timeout_keep_alive, self.answered_at
        )
        self.pipeline = deque[RequestCycle]()  # unanswered requests, in order; the first is being served
        self._arrived: RequestCycle | None = None  # to begin once all data is parsed
        self.is_read_paused = self.is_write_paused = self._is_refused = False
        self.writable = asyncio.Event()
        self.is_listed_idle = False  # in the table; then the timer runs too
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether every request has been answered."""
        return self._is_refused or not (self._parser.has_head or self.pipeline)

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._server_state.connections.add(cast(Any, self))
        self._base_scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "server": (transport.get_extra_info("sockname") or ())[:2] or None,
            "client": (transport.get_extra_info("peername") or ())[:2] or None,
            "root_path": "",
        }
        is_full = len(self._server_state.connections) > self._server.limits.max_connections
        if is_full and not self._table.evict_one(self._loop.time()):
            self._refuse(self._server.limits.too_many_connections())
            return
        self._table.mark_idle(self)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._disconnect()
        self.resume_writing()
        self.transport.close()

    def _leave(self) -> None:
        self._server_state.connections.discard(cast(Any, self))
        self._table.remove(self)
        self._stop_timer()
        self._parser.close()

    def _disconnect(self) -> None:
        """Nothing more is sent to the requests in the pipeline."""
        while self.pipeline:
            self.pipeline.popleft().disconnect()

    def shutdown(self) -> None:
        """Called by uvicorn: no further requests."""
        if self.pipeline:
            self.pipeline[-1].keep_alive = False
        else:
            self.transport.close()

    def evict(self) -> None:
        """Close at once: waiting until the client has read unsent data could take for ever."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # Back-pressure.

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self.writable.clear()
        self._table.mark_stalled(self, self._loop.time())

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self.writable.set()
        self._table.mark_moving(self)

    def pause_reading(self) -> None:
        if not self.is_read_paused:
            self.is_read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_read_paused and len(self.pipeline) <= 1 + _MAX_WAITING:
            self.is_read_paused = False
            self.transport.resume_reading()

    # Requests.

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        fast_path, recognised = self._fast_path, None
        if fast_path is not None and not (self.pipeline or self._parser.is_receiving):
            recognised = fast_path.recognise(data)
        if fast_path is None or recognised is None:
            self._parse(data)
            return
        scope, body = recognised
        cycle = RequestCycle(self, scope, body)
        self.pipeline.append(cycle)
        if not fast_path.begin(scope, body, cycle, cycle.resume_as_task):
            self._run(cycle)

    def _parse(self, data: bytes) -> None:
        parser, is_first = self._parser, not self._parser.is_receiving
        if self.pipeline and self.is_listed_idle:
            self._table.mark_busy(self)
        try:
            if parser.feed(data, self._loop.time()):
                head = parser.handshake(is_answered=not self.pipeline)
                start_websocket(self.transport, head, self._config, self._server_state, self._app_state)
                self._leave()
        except RequestRefused as refused:
            self._refuse(refused.error)
        if self._arrived is not None:
            cycle, self._arrived = self._arrived, None
            fast_path = None if cycle.has_more_body or self.transport.is_closing() else self._fast_path
            if fast_path is not None and is_first and not parser.is_receiving:
                fast_path.learn(data, cycle)
            whole = bytes(cycle.body)
            if fast_path is None or not fast_path.begin(cycle.scope, whole, cycle, cycle.resume_as_task):
                self._run(cycle)
        if parser.is_receiving and not self._is_refused:
            if parser.has_head:
                self._table.mark_stalled(self, parser.received_at)
            self._start_timer()

    def _run(self, cycle: RequestCycle) -> None:
        """Run the whole application."""
        cycle.scope["extensions"] = {EXTENSION: cycle}
        cycle.resume_as_task(self._app)

    def start_task(self, cycle: RequestCycle, app: App) -> None:
        if self.is_listed_idle:
            self._table.mark_busy(self)
        tasks = self._server_state.tasks
        task = self._loop.create_task(cycle.run(app))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_response_end(self) -> None:
        self.pipeline.popleft()
        self._server_state.total_requests += 1
        if self.is_listed_idle:
            self.answered_at = self._loop.time()
        elif not self.transport.is_closing():
            if self.pipeline:
                self._run(self.pipeline[0])
            else:
                self._on_idle()
            self.resume_reading()

    def _on_idle(self) -> None:
        """Every request has been answered, although the body of the last one may still arrive."""
        self.answered_at = self._loop.time()
        if not self._parser.has_head:
            self._table.mark_idle(self)
        self._start_timer()

    def _on_head(self, scope: Scope, keep_alive: bool) -> RequestCycle:
        scope.update(self._base_scope, state=self._app_state.copy())
        cycle = RequestCycle(self, scope, bytearray())
        cycle.has_more_body = True
        cycle.keep_alive = keep_alive
        expects = find_header(scope["headers"], b"expect").lower()
        cycle.awaits_continue = expects == b"100-continue" and scope["http_version"] == "1.1"
        if self.pipeline:
            self.pause_reading()
        else:
            self._arrived = cycle
        self.pipeline.append(cycle)
        self._table.mark_busy(self)
        return cycle

    def on_request_end(self) -> None:
        self._table.mark_moving(self)
        if not self.pipeline:
            self._on_idle()

    # Time.

    def _start_timer(self) -> None:
        """One timer for all limits. Short requests don't reset it: when it fires it may be too early."""
        self._stop_timer()
        deadline, _ = self._deadline()
        if deadline is None:
            self._table.mark_busy(self)  # so that the response starts it again
        else:
            self._timer = self._loop.call_at(deadline, self._on_timer, deadline)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _deadline(self) -> tuple[float | None, OnLate | None]:
        return self._parser.deadline(None if self.pipeline else self.answered_at)

    def _on_timer(self, started_for: float) -> None:
        if self.is_read_paused:
            self._parser.received_at = self._loop.time()  # the client is not late
        deadline, on_late = self._deadline()
        if deadline != started_for:
            self._start_timer()
        elif on_late is not None:
            self._refuse(on_late())
        else:
            self.transport.close()

    # Refusals.

    def _refuse(self, error: ApiError) -> None:
        """Send the error and close; only close if the error could be taken for another request's response."""
        self._stop_timer()
        self._is_refused = True
        pending, parser = list(self.pipeline), self._parser
        is_own = parser.has_head  # the application is serving the refused request
        self._disconnect()
        if not pending or (is_own and len(pending) == 1 and not pending[0].is_started):
            self.transport.write(encode_refusal(error, parser.url, parser.headers, self._server.origins))
            self.transport.write_eof()  # closing with unread input would reset the connection
            self.resume_reading()  # incoming data is dropped
            self._loop.call_later(_LINGER_S, self.transport.close)
            self._table.mark_idle(self)  # may be evicted until it is closed
        else:
            self.transport.close()
