"""Encodes responses: whole ones, and heads and bodies that are sent one after the other."""

from __future__ import annotations

import re
from http import HTTPStatus

from api.http.asgi import RawHeaders

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
_STATUS_LINES = {code: b"HTTP/1.1 %d %b\r\n" % (code, _PHRASES.get(code, b"")) for code in range(100, 600)}
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_INVALID_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS = (204, 304)


def encode_whole(
    status: int, headers: RawHeaders, body: bytes, is_head_request: bool, *, keep_alive: bool
) -> bytes:
    """Encode a response. Its headers are Berth's own, or the parser that they come from has checked them."""
    pieces = [_STATUS_LINES[status]]
    has_length = False
    for name, value in headers:
        pieces += (name, b": ", value, b"\r\n")
        has_length = has_length or name == b"content-length"
    is_bodiless = is_head_request or status in _BODILESS
    if not has_length and not is_bodiless:
        pieces.append(b"content-length: %d\r\n" % len(body))
    pieces.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    if not is_bodiless:
        pieces.append(body)
    return b"".join(pieces)


class StreamedResponse:
    """A response that is sent in pieces; raises RuntimeError for what an application must not send.

    HTTP/1.0 clients cannot read chunks: for them the end of the connection ends a body without a length
    (RFC 9112, section 6.3). And they keep a connection only if both sides agree (section 9.3).
    """

    __slots__ = ("_is_bodiless", "_num_left", "head", "is_chunked", "keep_alive")

    def __init__(
        self, status: int, headers: RawHeaders, http_version: str, is_head_request: bool, *, keep_alive: bool
    ) -> None:
        self._num_left: int | None = None  # bytes of the body; None: until the connection ends
        self._is_bodiless = is_head_request or status in _BODILESS
        connection = b""
        pieces = [_STATUS_LINES[status]]
        for given, value in headers:
            name = given.lower()
            if not _NAME.fullmatch(name) or _INVALID_VALUE.search(value):
                raise RuntimeError(f"invalid response header {name!r}")
            if name == b"transfer-encoding":
                continue  # the server decides
            if name == b"content-length":
                self._num_left = int(value)
            elif name == b"connection":
                connection += b"," + value.lower()
            pieces += (name, b": ", value, b"\r\n")
        has_known_end = self._is_bodiless or self._num_left is not None
        self.is_chunked = not has_known_end and http_version != "1.0"
        is_closing = b"close" in {option.strip() for option in connection.split(b",")}
        self.keep_alive = keep_alive and not is_closing and (has_known_end or self.is_chunked)
        if self.is_chunked:
            pieces.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive and not is_closing:
            pieces.append(b"connection: close\r\n")
        elif self.keep_alive and not connection and http_version == "1.0":
            pieces.append(b"connection: keep-alive\r\n")
        self.head = b"".join((*pieces, b"\r\n"))

    def encode(self, piece: bytes, *, is_last: bool) -> bytes:
        """Encode a piece of the body."""
        if self._is_bodiless:
            return b""
        if self.is_chunked:
            chunk = b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
            return chunk + b"0\r\n\r\n" if is_last else chunk
        if self._num_left is not None:
            self._num_left -= len(piece)
            if self._num_left < 0 or (is_last and self._num_left):
                raise RuntimeError("the response's body is longer or shorter than its Content-Length")
        return piece
