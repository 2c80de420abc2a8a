"""Heads that have come before: a client's next request mostly begins as its last one did, down to the byte.

Such a head is recognised and not parsed again, whatever its `Content-Length` is this time. What is derived
from a head alone is kept with it. Pure functions on bytes; the parser has the first word on every head.
"""

from __future__ import annotations

import re
from typing import Any

from api.http.asgi import RawHeaders

# Where a scope carries what was derived from its head alone, to read and to add to; a head that is new has
# none. Only until the request goes on as ASGI: from then on anybody may give it other headers.
ROUTE_CACHE = "berth.route_cache"
RouteCache = dict[str, Any]

_MAX_HEAD_BYTES = 4096
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"


class CachedHead:
    """The head of one message. `headers` are those the parser has read of it, names in lower case."""

    __slots__ = ("_after", "_before", "_headers", "_length_at", "has_length", "route_cache")

    def __init__(self, before: bytes, after: bytes, headers: RawHeaders, length_at: int | None) -> None:
        self._before = before  # up to the length's digits; all of a head that has none
        self._after = after
        self._headers = headers
        self._length_at = length_at
        self.has_length = length_at is not None
        self.route_cache: RouteCache = {}

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
        """The headers of a message that has this body."""
        headers = self._headers.copy()
        if self._length_at is not None:
            headers[self._length_at] = (b"content-length", b"%d" % len(body))
        return headers


def cached_head(data: bytes, headers: RawHeaders) -> CachedHead | None:
    """The head of `data`, which the parser has taken for one whole message with these headers.

    None where its end can't be told by the head and a length alone: then it is parsed each time.
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
