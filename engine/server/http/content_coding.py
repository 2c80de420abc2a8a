"""Bodies that come compressed: decoded, within the limit for bodies; other codings are refused by name."""

from __future__ import annotations

import asyncio
import zlib

from engine.errors import InvalidRequest
from engine.server.http.errors import BodyTooLarge, UnsupportedMediaType

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


async def decoded(raw: bytes, header: str | None, max_bytes: int) -> bytes:
    """The body that `raw` is by its `Content-Encoding`. Raises InvalidRequest and its like."""
    codings = [one.strip().lower() for one in (header or "").split(",")]
    coding = ", ".join(one for one in codings if one not in ("", "identity"))
    if not coding or not raw:
        return raw
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(
            f"Content-Encoding: {coding[:80]} is not taken: send the body as it is, or as gzip or deflate."
        )
    return await asyncio.to_thread(_decode, coding, raw, max_bytes)


def _decode(coding: str, raw: bytes, max_bytes: int) -> bytes:
    """Never holds more than `max_bytes` and a byte of what `raw` becomes."""
    bits = _GZIP if coding != "deflate" else _ZLIB if _has_zlib_head(raw) else _RAW
    stream = zlib.decompressobj(bits)
    try:
        body = stream.decompress(raw, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(f"The body is no valid {coding}: {error}.") from error
    if len(body) > max_bytes:
        raise BodyTooLarge(f"The body, decoded, is larger than {max_bytes} bytes.")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"The body is no valid {coding}: it ends too early, or too late.")
    return body


def _has_zlib_head(raw: bytes) -> bool:
    """Whether `deflate` is what its standard says; some clients send it bare."""
    return len(raw) > 1 and raw[0] & 15 == 8 and (raw[0] << 8 | raw[1]) % 31 == 0
