"""Caches a connection's last request head: a client's next head is mostly the same, byte for byte.

Such a head is recognised and not parsed again, whatever its new `Content-Length`, and what serves it is
cached with it. Pure functions on bytes; every head is first accepted by the parser.
"""

from __future__ import annotations

import re

from api.http.asgi import RawHeaders
from api.http.response_channel import Handler

# Scope key of the RouteCache of the request's head; a scope with a new head has none. Removed when it
# continues as ASGI: from then on its headers may be changed.
ROUTE_CACHE = "berth.route_cache"

_MAX_HEAD_BYTES = 4096
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"


class RouteCache:
    """What serves the requests with one head, once it is known."""

    __slots__ = ("handler",)

    def __init__(self) -> None:
        self.handler: Handler | None = None


class CachedHead:
    """The head of one request. `headers`: as the parser has read them, names in lower case."""

    __slots__ = ("_after", "_before", "_headers", "_length_at", "has_length", "route_cache")

    def __init__(self, before: bytes, after: bytes, headers: RawHeaders, length_at: int | None) -> None:
        self._before = before  # up to the digits of Content-Length; the whole head if it has none
        self._after = after
        self._headers = headers
        self._length_at = length_at
        self.has_length = length_at is not None
        self.route_cache = RouteCache()

    def body_of(self, data: bytes) -> bytes | None:
        """The body, if `data` is this head with its whole body and nothing else."""
        if not data.startswith(self._before):
            return None
        begin = len(self._before)
        if not self.has_length:
            return b"" if len(data) == begin else None
        end = data.find(b"\r", begin, begin + 10)
        digits = data[begin:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._after, end):
            return None
        end += len(self._after)
        return data[end:] if len(data) - end == int(digits) else None

    def headers_for(self, body: bytes) -> RawHeaders:
        """The headers of a request with this body."""
        headers = self._headers.copy()
        if self._length_at is not None:
            headers[self._length_at] = (b"content-length", b"%d" % len(body))
        return headers


def cached_head(data: bytes, headers: RawHeaders) -> CachedHead | None:
    """The head of `data`, which the parser has accepted as one whole request with these headers.

    None if head and length alone do not determine where the request ends: then each one is parsed.
    """
    lengths = [at for at, (name, _) in enumerate(headers) if name == b"content-length"]
    if len(lengths) > 1 or any(name in (b"transfer-encoding", b"upgrade") for name, _ in headers):
        return None
    end = data.find(_END, 0, _MAX_HEAD_BYTES) + len(_END)
    if end < len(_END):
        return None
    if not lengths:
        return CachedHead(data, b"", headers, None) if len(data) == end else None
    found = _LENGTH.search(data, 0, end)
    if found is None or end + int(found[1]) != len(data):
        return None
    return CachedHead(data[: found.start(1)], data[found.end(1) : end], headers, lengths[0])
