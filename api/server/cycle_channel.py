"""Responses in one write, past uvicorn's `send`: encodes them, and keeps the state of uvicorn's cycle."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from api.http.asgi import RawHeaders
from api.server import http_1_0
from api.server.descriptors import unsent_in_kernel


class CycleChannel:
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
        cycle.transport.write(
            encode_whole(status, headers, body, is_head_request, keep_alive=cycle.keep_alive)
        )
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
        self.cycle.disconnected = True  # else uvicorn logs that the response is incomplete
        self.cycle.transport.close()

    def num_unsent(self) -> int:
        cycle = self.cycle
        if not cycle.flow.write_paused:
            return 0
        return cycle.transport.get_write_buffer_size() + unsent_in_kernel(cycle.transport)

    def cut(self) -> None:
        self.cycle.disconnected = True
        self.cycle.transport.abort()


def encode_whole(
    status: int, headers: RawHeaders, body: bytes, is_head_request: bool, *, keep_alive: bool
) -> bytes:
    """Encode a response."""
    # The parser that these headers come from rejects line breaks.
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
