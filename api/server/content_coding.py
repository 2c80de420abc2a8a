"""Decodes compressed request bodies on routes where Berth reads them, within the limit for bodies.

`/proxy/…` is exempt: its bodies are for the engine to decode. One coding at a time, of those in Python's
standard library; any other is refused with 415.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

from api.http.asgi import App, Receive, Scope, Send
from api.http.buffered_body import buffer_body, replaying
from api.http.client_errors import ClientGone
from api.http.dispatch import raw_path
from api.http.errors import ApiError, RequestRefused, api_error
from api.http.headers import find_header
from api.http.off_loop import MAX_ON_LOOP_BYTES, off_loop
from api.http.respond import request_id_of, send_error
from api.telemetry.access_log import log_answered

_INVALID = "invalid_request_error"
_REPLACED = (b"content-encoding", b"content-length", b"transfer-encoding")
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_PIECE_BYTES = 64 * 1024
_ON_LOOP_BYTES = MAX_ON_LOOP_BYTES // 64  # decoded, they may be a thousand times as many


class DecodingApp:
    """An ASGI application that passes requests to `inner` with their bodies decoded.

    `on_refused` is called with the method and status of each request that is refused here.
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
        except RequestRefused as refused:
            error = refused.error
            request_id = request_id_of(scope)
            self._on_refused(scope["method"], error.status)
            log_answered(scope, error.status, started, request_id, "undecodable body")
            await send_error(send, error, raw_path(scope), request_id)
            return
        await self._inner(scope, receive, send)


async def decoded(scope: Scope, receive: Receive, max_bytes: int) -> tuple[Scope, Receive]:
    """The request with its body decoded, or unchanged if it has no content coding.

    Raises RequestRefused, also if the decoded body would exceed `max_bytes`, and ClientGone.
    """
    coding = _coding_of(scope)
    if not coding:
        return scope, receive
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise RequestRefused(_unknown(coding))
    buffered = await buffer_body(receive, max_bytes)
    if buffered.body is None:
        raise RequestRefused(_too_long(max_bytes))
    encoded = buffered.body
    num_bytes = len(encoded) if len(encoded) <= _ON_LOOP_BYTES else MAX_ON_LOOP_BYTES + 1
    body = await off_loop(num_bytes, lambda: decode(coding, encoded, max_bytes)) if encoded else b""
    headers = [pair for pair in scope["headers"] if pair[0] not in _REPLACED]
    headers.append((b"content-length", b"%d" % len(body)))
    return {**scope, "headers": headers}, replaying(body, receive)


def decode(coding: str, encoded: bytes, max_bytes: int) -> bytes:
    """Decode a body; never holds more than `max_bytes` of the result. Raises RequestRefused.

    Decodes twice: first in pieces that are dropped, to learn the length, then into one block of that length.
    Otherwise zlib collects blocks and joins them: twice the memory, and the event loop is blocked.
    """
    bits = _GZIP if coding != "deflate" else _ZLIB if _has_zlib_head(encoded) else _RAW
    try:
        length = _decoded_length(coding, zlib.decompressobj(bits), encoded, max_bytes)
        return zlib.decompress(encoded, bits, max(length, 1))
    except zlib.error as error:
        raise RequestRefused(_invalid(coding, str(error))) from None


def _decoded_length(coding: str, stream: zlib._Decompress, encoded: bytes, max_bytes: int) -> int:
    length, view = 0, memoryview(encoded)
    for start in range(0, len(encoded), _PIECE_BYTES):
        tail = bytes(view[start : start + _PIECE_BYTES])
        if stream.eof:
            raise RequestRefused(
                _invalid(coding, f"{len(encoded) - start} bytes follow the end of the stream")
            )
        while tail:
            length += len(stream.decompress(tail, 16 * _PIECE_BYTES))
            if length > max_bytes:
                raise RequestRefused(_too_long(max_bytes))
            tail = stream.unconsumed_tail
    length += len(stream.flush())
    if length > max_bytes:
        raise RequestRefused(_too_long(max_bytes))
    if not stream.eof:
        raise RequestRefused(_invalid(coding, "the stream is truncated"))
    if stream.unused_data:
        raise RequestRefused(
            _invalid(coding, f"{len(stream.unused_data)} bytes follow the end of the stream")
        )
    return length


def _coding_of(scope: Scope) -> str:
    """All codings named by the head, in lower case; empty if the body is not encoded."""
    if scope["type"] != "http":
        return ""
    named = b",".join(value for name, value in scope["headers"] if name == b"content-encoding")
    codings = (coding.strip().lower() for coding in named.decode("latin-1").split(","))
    return ", ".join(coding for coding in codings if coding not in ("", "identity"))


def _has_zlib_head(encoded: bytes) -> bool:
    """Whether a `deflate` body has the zlib header that its standard requires; some clients omit it."""
    return len(encoded) > 1 and encoded[0] & 15 == 8 and (encoded[0] << 8 | encoded[1]) % 31 == 0


def _unknown(coding: str) -> ApiError:
    message = f"Content-Encoding {coding[:80]!r} is not supported; use gzip, deflate or none"
    error = api_error(415, message, _INVALID, param="Content-Encoding", code="unsupported_content_encoding")
    error.headers.append((b"accept-encoding", b"gzip, deflate"))
    return error


def _too_long(max_bytes: int) -> ApiError:
    size = f"{max_bytes >> 20} MiB" if max_bytes >> 20 else f"{max_bytes >> 10} KiB"
    message = f"the decoded body exceeds {size}, the limit of this route; send a smaller one"
    return api_error(413, message, _INVALID, code="body_too_large")


def _invalid(coding: str, problem: str) -> ApiError:
    message = f"the body is not valid {coding}, as its Content-Encoding says: {problem}"
    return api_error(400, message, _INVALID, param="Content-Encoding", code="invalid_content_encoding")
