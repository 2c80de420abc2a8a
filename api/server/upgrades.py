"""Upgrade offers (`Upgrade: h2c` …) that Berth declines: their requests are served as plain HTTP/1.1.

The parser assumes that every upgrade is accepted: it stops after the head and ignores the body. So a new
parser reads the body; it is fed a head with only the headers that frame the body (RFC 9110, section 7.8).
"""

from __future__ import annotations

from typing import Any

from httptools import HttpRequestParser

from api.http.asgi import RawHeaders

_FRAMING = (b"content-length", b"transfer-encoding")


class _AfterHead:
    """A parser's callbacks, muted for the first head, which the protocol has already received."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self.is_muted = True
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self.is_muted:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.is_muted:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_muted:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.is_muted:
            self.is_muted = False
        else:
            self._protocol.on_headers_complete()


def parser_after(headers: RawHeaders, protocol: Any) -> tuple[HttpRequestParser, bytes]:
    """A parser for what follows a head with these headers, and the head to feed it first."""
    parser = HttpRequestParser(_AfterHead(protocol))
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
    framing = [b"%b: %b\r\n" % pair for pair in headers if pair[0] in _FRAMING]
    return parser, b"".join([b"POST / HTTP/1.1\r\n", *framing, b"\r\n"])
