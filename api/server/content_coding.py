"""Bodies that come compressed, where Berth reads them itself: decoded, within the limit for bodies.

`/proxy/…` is not concerned: what goes there is the engine's to read. One coding at a time, of those that
Python's own library knows; any other is refused by its name.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

from api.http.asgi import App, Receive, Scope, Send
from api.http.buffered_body import peek, replaying
from api.http.dialects import send_error
from api.http.dispatch import raw_path
from api.http.errors import ApiError, api_error
from api.http.headers import find_header, sane_request_id
from api.http.leases import ClientGone
from api.http.off_loop import MAX_ON_LOOP_BYTES, off_loop
from api.telemetry.access_log import log_answered

_INVALID = "invalid_request_error"
_REPLACED = (b"content-encoding", b"content-length", b"transfer-encoding")
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_PIECE_BYTES = 64 * 1024
_ON_LOOP_BYTES = MAX_ON_LOOP_BYTES // 64  # which may become a thousand times as many


class BodyRefused(Exception):
    """A body can't be decoded; `error` is the answer."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class DecodingApp:
    """An ASGI application around `inner`, which gets all bodies as they were before they were compressed.

    `on_refused` is told the method and status of what didn't get that far.
    """

    def __init__(self, inner: App, max_bytes: int, on_refused: Callable[[str, int], None]) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not find_header(scope["headers"], b"content-encoding"):
            await self._inner(scope, receive, send)
            return
        started = time.perf_counter()
        try:
            scope, receive = await decoded(scope, receive, self._max_bytes)
        except ClientGone:
            return
        except BodyRefused as refused:
            error = refused.error
            request_id = sane_request_id(find_header(scope["headers"], b"x-request-id"))
            self._on_refused(scope["method"], error.status)
            log_answered(scope, error.status, started, request_id, "its body can't be decoded")
            await send_error(send, error, raw_path(scope), request_id)
            return
        await self._inner(scope, receive, send)


async def decoded(scope: Scope, receive: Receive, max_bytes: int) -> tuple[Scope, Receive]:
    """The request with its body decoded; as it is, where that is not encoded.

    Raises BodyRefused, also where it would be longer than `max_bytes`, and ClientGone.
    """
    coding = _coding_of(scope)
    if not coding:
        return scope, receive
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise BodyRefused(_unknown(coding))
    peeked = await peek(receive, max_bytes)
    if peeked.body is None:
        raise BodyRefused(_too_long(max_bytes))
    encoded = peeked.body
    num_bytes = len(encoded) if len(encoded) <= _ON_LOOP_BYTES else MAX_ON_LOOP_BYTES + 1
    body = await off_loop(num_bytes, lambda: decode(coding, encoded, max_bytes)) if encoded else b""
    headers = [pair for pair in scope["headers"] if pair[0] not in _REPLACED]
    headers.append((b"content-length", b"%d" % len(body)))
    return {**scope, "headers": headers}, replaying(body, receive)


def decode(coding: str, encoded: bytes, max_bytes: int) -> bytes:
    """What `encoded` was. What would be longer than `max_bytes` is never held. Raises BodyRefused.

    Decoded twice: once for the length, in pieces that are dropped, then into one block of just that length.
    Else zlib collects blocks and copies them together: twice the memory, and the event loop stands still.
    """
    bits = _GZIP if coding != "deflate" else _ZLIB if _has_zlib_head(encoded) else _RAW
    try:
        length = _decoded_length(coding, zlib.decompressobj(bits), encoded, max_bytes)
        return zlib.decompress(encoded, bits, max(length, 1))
    except zlib.error as error:
        raise BodyRefused(_invalid(coding, str(error))) from None


def _decoded_length(coding: str, stream: zlib._Decompress, encoded: bytes, max_bytes: int) -> int:
    length, view = 0, memoryview(encoded)
    for start in range(0, len(encoded), _PIECE_BYTES):
        tail = bytes(view[start : start + _PIECE_BYTES])
        if stream.eof:
            raise BodyRefused(_invalid(coding, f"{len(encoded) - start} bytes follow its end"))
        while tail:
            length += len(stream.decompress(tail, 16 * _PIECE_BYTES))
            if length > max_bytes:
                raise BodyRefused(_too_long(max_bytes))
            tail = stream.unconsumed_tail
    length += len(stream.flush())
    if length > max_bytes:
        raise BodyRefused(_too_long(max_bytes))
    if not stream.eof:
        raise BodyRefused(_invalid(coding, "it ends too early"))
    if stream.unused_data:
        raise BodyRefused(_invalid(coding, f"{len(stream.unused_data)} bytes follow its end"))
    return length


def _coding_of(scope: Scope) -> str:
    """All codings that the head names, in lower case; nothing where the body is as it is."""
    if scope["type"] != "http":
        return ""
    named = b",".join(value for name, value in scope["headers"] if name == b"content-encoding")
    codings = (one.strip().lower() for one in named.decode("latin-1").split(","))
    return ", ".join(one for one in codings if one not in ("", "identity"))


def _has_zlib_head(encoded: bytes) -> bool:
    """Whether `deflate` is what its standard says; some clients send it bare."""
    return len(encoded) > 1 and encoded[0] & 15 == 8 and (encoded[0] << 8 | encoded[1]) % 31 == 0


def _unknown(coding: str) -> ApiError:
    message = f"Content-Encoding: {coding[:80]} is not taken; send the body as it is, or as gzip or deflate"
    error = api_error(415, message, _INVALID, param="Content-Encoding", code="unsupported_content_encoding")
    error.headers.append((b"accept-encoding", b"gzip, deflate"))
    return error


def _too_long(max_bytes: int) -> ApiError:
    size = f"{max_bytes >> 20} MiB" if max_bytes >> 20 else f"{max_bytes >> 10} KiB"
    message = f"the body, decoded, is longer than the {size} that are taken here"
    return api_error(413, message, _INVALID, code="body_too_large")


def _invalid(coding: str, problem: str) -> ApiError:
    message = f"the body is not valid {coding}, which Content-Encoding says it is: {problem}"
    return api_error(400, message, _INVALID, param="Content-Encoding", code="invalid_content_encoding")
