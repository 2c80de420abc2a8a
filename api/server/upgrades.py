"""Offers of another protocol (`Upgrade: h2c` …) that Berth doesn't take: their requests are served anyhow.

The parser takes every upgrade for made: it stops behind the head and forgets the body. So the body is read by
a new parser, which gets a head that has nothing but what tells the body's end (RFC 9110, section 7.8).
"""

from __future__ import annotations

from typing import Any

from httptools import HttpRequestParser

from api.http.asgi import RawHeaders

_FRAMING = (b"content-length", b"transfer-encoding")


class _AfterHead:
    """A parser's callbacks, silent for the first head: of that the protocol has heard before."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self.is_silent = True
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self.is_silent:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.is_silent:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_silent:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.is_silent:
            self.is_silent = False
        else:
            self._protocol.on_headers_complete()


def parser_after(headers: RawHeaders, protocol: Any) -> tuple[HttpRequestParser, bytes]:
    """A parser for what follows a head with these headers, and the head that it is to be fed first."""
    parser = HttpRequestParser(_AfterHead(protocol))
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
    framing = [b"%b: %b\r\n" % pair for pair in headers if pair[0] in _FRAMING]
    return parser, b"".join([b"POST / HTTP/1.1\r\n", *framing, b"\r\n"])
