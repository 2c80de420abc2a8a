"""Decodes compressed bodies within the body-size limit; other codings are refused by name."""

from __future__ import annotations

import asyncio
import zlib

from engine.errors import InvalidRequest
from engine.server.http.errors import BodyTooLarge, UnsupportedMediaType

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


async def decoded(raw: bytes, header: str | None, max_bytes: int) -> bytes:
    """The body, decoded by its `Content-Encoding`. Raises InvalidRequest and its subclasses."""
    codings = [name.strip().lower() for name in (header or "").split(",")]
    coding = ", ".join(name for name in codings if name not in ("", "identity"))
    if not coding or not raw:
        return raw
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(
            f"Content-Encoding {coding[:80]} is not supported: send the body as is, or use gzip or deflate."
        )
    return await asyncio.to_thread(_decode, coding, raw, max_bytes)


def _decode(coding: str, raw: bytes, max_bytes: int) -> bytes:
    """Never decodes more than `max_bytes` + 1 bytes."""
    bits = _GZIP if coding != "deflate" else _ZLIB if _has_zlib_head(raw) else _RAW
    stream = zlib.decompressobj(bits)
    try:
        body = stream.decompress(raw, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(f"The body is not valid {coding}: {error}.") from error
    if len(body) > max_bytes:
        raise BodyTooLarge(f"The decoded body is larger than {max_bytes} bytes.")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"The body is not valid {coding}: it is truncated, or has data after its end.")
    return body


def _has_zlib_head(raw: bytes) -> bool:
    """Whether `deflate` has the zlib header that the standard requires; some clients omit it."""
    return len(raw) > 1 and raw[0] & 15 == 8 and (raw[0] << 8 | raw[1]) % 31 == 0
