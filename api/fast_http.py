"""uvicorn's HTTP protocol with two things added: requests begun without a task, and answers in one piece.

ASGI costs a task, a channel and two messages per request. For the short ones that make up most requests
this is more than all the forwarding. So a request that has arrived whole is offered to the application's
`begin` first, and a whole response is written at once. Any other server runs the same application by ASGI
alone, only slower. Built on uvicorn's internals: its version is pinned, the tests hold both ways to the same.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.asgi import RawHeaders, Scope
from api.response_channel import EXTENSION, DirectApp


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
        self._arriving: RequestResponseCycle | None = None
        self._direct = cast(DirectApp, self.app) if hasattr(self.app, "begin") else None

    def data_received(self, data: bytes) -> None:
        self._is_parsing = True
        super().data_received(data)
        self._is_parsing = False
        cycle, self._arriving = self._arriving, None
        if cycle is not None and not self._begin(cycle):
            self._run(self.app, cycle)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Called when a request's head is there; its body, if it came along, is parsed right after."""
        if self._is_parsing and app is self.app:
            self._arriving = cycle
        else:
            self._run(app, cycle)

    def _run(self, app: ASGI3Application, cycle: RequestResponseCycle) -> None:
        cast(Scope, cycle.scope)["extensions"] = {EXTENSION: _CycleChannel(cycle)}
        super()._start_asgi_task(cycle, app)

    def _begin(self, cycle: RequestResponseCycle) -> bool:
        if self._direct is None or cycle.more_body or self.transport.is_closing():
            return False
        hand_over = cast(Any, partial(super()._start_asgi_task, cycle))
        return self._direct.begin(
            cast(Scope, cycle.scope), bytes(cycle.body), _CycleChannel(cycle), hand_over
        )


class _CycleChannel:
    """The ResponseChannel of one request."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def is_ready(self) -> bool:
        return not self._cycle.flow.write_paused and not self._cycle.response_started

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        cycle = self._cycle
        if cycle.disconnected:
            return
        # The parser that these headers come from lets no line break through.
        pieces = [STATUS_LINE[status]]
        has_length = False
        for name, value in (*cycle.default_headers, *headers):
            pieces += (name, b": ", value, b"\r\n")
            has_length = has_length or name == b"content-length"
        is_bodiless = cycle.scope["method"] == "HEAD" or status == 204 or status == 304
        if not has_length and not is_bodiless:
            pieces.append(b"content-length: %d\r\n" % len(body))
        pieces.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        if not is_bodiless:
            pieces.append(body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join(pieces))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def abort(self) -> None:
        self._cycle.disconnected = True  # what uvicorn asks before it complains of a missing end
        self._cycle.transport.close()
