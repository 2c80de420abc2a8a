"""uvicorn's HTTP protocol with an ASGI extension of ours: an answer in one piece, and an abort without noise.

ASGI sends a response's head and body as two messages, which uvicorn writes with two system calls; for the
short responses that make up most requests that is a quarter of all the work. Where the data plane has a
whole response at hand it hands it over at once. It runs behind any ASGI server without this, only slower.
"""

from __future__ import annotations

from typing import Protocol, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.asgi import RawHeaders, Scope

EXTENSION = "berth.response"


class ResponseChannel(Protocol):
    """The value of `scope["extensions"]["berth.response"]`."""

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        """Send all of a response; False where the server is not ready and ASGI's own way must be taken."""

    def abort(self) -> None:
        """Close the connection after what has been sent: the client sees that the body is cut."""


def channel_of(scope: Scope) -> ResponseChannel | None:
    """The extension, where the server has it.

    It is taken out of the scope: the three of scope, channel and uvicorn's cycle would keep each other alive
    until the garbage collector runs, which then runs a lot.
    """
    extensions = scope.get("extensions")
    return cast("ResponseChannel | None", extensions.pop(EXTENSION, None)) if extensions else None


class FastHttpProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=FastHttpProtocol)`."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        cast(Scope, cycle.scope)["extensions"] = {EXTENSION: _CycleChannel(cycle)}
        super()._start_asgi_task(cycle, app)


class _CycleChannel:
    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def send_whole(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.response_started:
            return False
        if cycle.disconnected:
            return True
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
        return True

    def abort(self) -> None:
        self._cycle.disconnected = True  # what uvicorn asks before it complains of a missing end
        self._cycle.transport.close()
