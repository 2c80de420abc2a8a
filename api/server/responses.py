"""Encodes responses: whole ones, the server's own errors, and those that are sent in pieces."""

from __future__ import annotations

import re
from http import HTTPStatus

from api.cors import Origins
from api.http.asgi import RawHeaders, Scope
from api.http.dialects import in_dialect
from api.http.errors import ApiError
from api.http.headers import find_header, sane_request_id

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
_STATUS_LINES = {code: b"HTTP/1.1 %d %b\r\n" % (code, _PHRASES.get(code, b"")) for code in range(100, 600)}
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_INVALID_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS = (204, 304)
_KEEP_ALIVE, _CLOSE = b"connection: keep-alive\r\n", b"connection: close\r\n"
_ANY_REQUEST = {"method": "", "http_version": "1.1"}


def encode_whole(status: int, headers: RawHeaders, body: bytes, scope: Scope, keep_alive: bool) -> bytes:
    """Encode a response. Its headers are Berth's own, or the parser that they come from has checked them."""
    pieces = [_STATUS_LINES[status]]
    has_length = False
    for name, value in headers:
        pieces += (name, b": ", value, b"\r\n")
        has_length = has_length or name == b"content-length"
    is_bodiless = scope["method"] == "HEAD" or status in _BODILESS
    if not has_length and not is_bodiless:
        pieces.append(b"content-length: %d\r\n" % len(body))
    if not keep_alive or scope["http_version"] == "1.0":
        pieces.append(_KEEP_ALIVE if keep_alive else _CLOSE)
    pieces += (b"\r\n",) if is_bodiless else (b"\r\n", body)
    return b"".join(pieces)


def encode_refusal(error: ApiError, url: bytes, headers: RawHeaders, origins: Origins | None) -> bytes:
    """An error for a request that no application sees, as the last response of its connection.

    In the request's API dialect, with its id and CORS headers, as far as `url` and `headers` are known.
    """
    request_id = sane_request_id(find_header(headers, b"x-request-id"))
    error = in_dialect(error, url, request_id)
    lines = [*error.headers, (b"x-request-id", request_id)]
    if origins is not None and (origin := find_header(headers, b"origin")):
        lines = origins.answer(lines, origin)
    return encode_whole(error.status, lines, error.body, _ANY_REQUEST, keep_alive=False)


class StreamedResponse:
    """A response that is sent in pieces; raises RuntimeError for what an application must not send.

    HTTP/1.0 clients cannot read chunks: for them the end of the connection ends a body without a length
    (RFC 9112, section 6.3). And they keep a connection only if both sides agree (section 9.3).
    """

    __slots__ = ("_is_bodiless", "_num_left", "head", "is_chunked", "keep_alive")

    def __init__(self, status: int, headers: RawHeaders, scope: Scope, keep_alive: bool) -> None:
        is_http_1_0 = scope["http_version"] == "1.0"
        self._is_bodiless = scope["method"] == "HEAD" or status in _BODILESS
        self._num_left: int | None = None  # bytes of the body; None: until the connection ends
        pieces = [_STATUS_LINES[status]]
        for name, value in headers:
            name = name.lower()
            if not _NAME.fullmatch(name) or _INVALID_VALUE.search(value):
                raise RuntimeError(f"invalid response header {name!r}")
            if name == b"content-length":
                self._num_left = int(value)
            if name == b"connection":
                keep_alive = keep_alive and b"close" not in value.lower()
            elif name != b"transfer-encoding":
                pieces += (name, b": ", value, b"\r\n")
        has_known_end = self._is_bodiless or self._num_left is not None
        self.is_chunked = not has_known_end and not is_http_1_0
        self.keep_alive = keep_alive and (has_known_end or self.is_chunked)
        if self.is_chunked:
            pieces.append(b"transfer-encoding: chunked\r\n")
        if is_http_1_0 or not self.keep_alive:
            pieces.append(_KEEP_ALIVE if self.keep_alive else _CLOSE)
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
