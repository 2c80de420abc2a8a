"""Reads one connection's requests on httptools' parser, within the limits. Knows no socket and no event loop.

A declined upgrade (`Upgrade: h2c` …) leaves a plain HTTP/1.1 request (RFC 9110, section 7.8). But the parser
assumes that every upgrade is accepted: it stops after the head and ignores the body. So a new parser
continues, fed first with a head of only the headers that frame the body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools

from api.http.asgi import RawHeaders, Scope
from api.http.errors import ApiError, RequestRefused
from api.http.headers import find_header
from api.server.limits import ConnectionLimits, malformed_handshake, malformed_http
from api.server.request_cycle import RequestCycle

_FRAMING = (b"content-length", b"transfer-encoding")

# Called with the request's part of ASGI's scope, and whether to keep the connection.
OnHead = Callable[[Scope, bool], RequestCycle]
OnLate = Callable[[], ApiError]


class RequestParser:
    """One connection's. Times are the event loop's."""

    def __init__(self, limits: ConnectionLimits, on_head: OnHead, keep_alive_s: float, now: float) -> None:
        self.is_receiving = False  # part of a request has arrived, but not all of it
        self.has_head = False  # the head of that request is complete
        self.received_at = now
        self.url, self.method = b"", b""  # of the last request
        self.headers: RawHeaders = []
        self._limits, self._on_head = limits, on_head
        self._cycle: Any = None  # a RequestCycle, once there is a head
        self._keep_alive_s = keep_alive_s
        self._idle_s = limits.head_timeout_s  # how long the client may send nothing
        self._head_begun_at = now  # the first one begins with the connection
        self._body_bytes = self._unreported_bytes = 0  # the latter of a head, chunk extensions or trailers
        self._is_handshake = self._is_declined = False  # what the last head offers
        self._parser = self._new_parser()

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        # Else a request behind one with `Connection: close` would be an error before that one's response.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def close(self) -> None:
        """Drop what refers to this object."""
        self._parser = self._on_head = self._cycle = None  # type: ignore[assignment]

    def feed(self, data: bytes, now: float) -> bool:
        """Read data; returns whether the head of a WebSocket handshake ends it. Raises RequestRefused."""
        self.received_at = now
        self._unreported_bytes += len(data)
        unread: list[Any] = [data]
        try:
            while unread:
                data = unread.pop(0)
                try:
                    self._parser.feed_data(data)
                except httptools.HttpParserUpgrade as stopped:
                    if self._is_handshake:
                        return True
                    self._is_declined = False
                    self._parser = self._new_parser()
                    unread = [self._framing_head(), memoryview(data)[stopped.args[0] :]]
        except httptools.HttpParserError as error:
            cause = error.__context__
            raise cause if isinstance(cause, RequestRefused) else RequestRefused(malformed_http()) from None
        if self.is_receiving and self._unreported_bytes > self._limits.max_head_bytes:
            raise RequestRefused(self._limits.head_too_large())
        return False

    def _framing_head(self) -> bytes:
        lines = [b"%b: %b\r\n" % pair for pair in self.headers if pair[0] in _FRAMING]
        return b"".join((b"POST / HTTP/1.1\r\n", *lines, b"\r\n"))

    def handshake(self, *, is_answered: bool) -> bytes:
        """The head of a WebSocket handshake. `is_answered`: earlier requests are. Raises RequestRefused."""
        if not is_answered:  # its response would be taken for an earlier request's, or vice versa
            raise RequestRefused(malformed_handshake("an earlier request is still unanswered"))
        if b"#" in self.url:
            raise RequestRefused(malformed_handshake("its path contains '#'; write it as %23"))
        lines = [b"%b: %b\r\n" % pair for pair in self.headers]
        return b"".join((b"%b %b HTTP/1.1\r\n" % (self.method, self.url), *lines, b"\r\n"))

    # Time.

    def deadline(self, answered_at: float | None) -> tuple[float | None, OnLate | None]:
        """When the client is late, if ever, and with which error; without one it is only idle.

        `answered_at`: time of the last response, None if one is due.
        """
        if self.has_head:
            return self.received_at + self._limits.body_timeout_s, self._limits.body_timed_out
        if answered_at is None:
            return None, None
        if self.is_receiving:
            begun_at = max(self._head_begun_at, answered_at)
            return begun_at + self._limits.head_timeout_s, self._limits.head_timed_out
        return answered_at + self._idle_s, None

    # The parser's callbacks. Those for a head are ignored once there is one: they are about a trailer, which
    # taken for a header would bypass all checks, or about the head that frames the body after an upgrade.

    def on_message_begin(self) -> None:
        if self.has_head:
            return
        self.is_receiving = True
        self.url, self.headers = b"", []
        if self._idle_s is self._keep_alive_s:
            self._head_begun_at = self.received_at

    def on_url(self, url: bytes) -> None:
        if not self.has_head:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.has_head:
            return
        self._check_head()
        self.method = self._parser.get_method()
        is_upgrade = self._parser.should_upgrade()
        self._is_handshake = is_upgrade and find_header(self.headers, b"upgrade").lower() == b"websocket"
        self._is_declined = is_upgrade and not self._is_handshake
        if not self._is_handshake:
            self._cycle = self._on_head(self._scope(), self._keeps_connection())
        self.has_head = True
        self._idle_s = self._keep_alive_s
        self._unreported_bytes = self._body_bytes = 0

    def on_body(self, piece: bytes) -> None:
        self._unreported_bytes = 0
        self._body_bytes += len(piece)
        if self._body_bytes > self._limits.max_body_bytes:
            raise RequestRefused(self._limits.body_too_large())
        self._cycle.on_body(piece)

    def on_message_complete(self) -> None:
        if self._is_declined:
            return  # the parser takes the body for the other protocol's
        self.is_receiving = self.has_head = False
        self._unreported_bytes = 0
        if not self._is_handshake:
            self._cycle.on_end()

    # Heads.

    def _check_head(self) -> None:
        limits = self._limits
        if self._parser.get_http_version() not in ("1.1", "1.0"):
            raise RequestRefused(malformed_http())
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if num_bytes > limits.max_head_bytes or len(self.headers) > limits.max_headers:
            raise RequestRefused(limits.head_too_large())
        for name, value in self.headers:
            if name == b"content-length" and int(value) > limits.max_body_bytes:
                raise RequestRefused(limits.body_too_large())

    def _keeps_connection(self) -> bool:
        if self._parser.get_http_version() == "1.1":
            return bool(self._parser.should_keep_alive())
        given = b",".join(value for name, value in self.headers if name == b"connection")
        options = {option.strip() for option in given.lower().split(b",")}
        return b"keep-alive" in options and b"close" not in options  # RFC 9112, section 9.3

    def _scope(self) -> Scope:
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        return {
            "http_version": self._parser.get_http_version(),
            "method": self.method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": target.path,
            "query_string": target.query or b"",
            "headers": self.headers,
        }
