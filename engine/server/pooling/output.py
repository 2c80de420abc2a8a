"""Writes the responses of a pooling server."""

from __future__ import annotations

import base64
import json
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import Response

from engine.server.http.large_work import GilThrottle, LargeWork
from engine.server.pooling.bodies import VectorOptions
from engine.server.pooling.encode import Encoded

_LARGE_VALUES = 8192  # above this, JSON is written in a thread


def usage_of(inputs: Sequence[Encoded]) -> dict[str, Any]:
    """OpenAI's usage object, with vLLM's completion_tokens of 0."""
    num_tokens = sum(len(encoded.token_ids) for encoded in inputs)
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens, "completion_tokens": 0}


def json_response(body: dict[str, Any]) -> Response:
    return Response(json.dumps(body, ensure_ascii=False).encode(), media_type="application/json")


async def list_response(
    head: dict[str, Any],
    items: Sequence[Callable[[], dict[str, Any]]],
    size: int,
    large_work: LargeWork,
) -> Response:
    """An object whose `data` has many items, with `size` numbers in total.

    Items are written one by one: one long call into the encoder would block all other threads.
    """

    def write() -> bytes:
        throttle, parts = GilThrottle(), []
        for item in items:
            parts.append(json.dumps(item()))
            throttle.pause()
        data = ", ".join(parts)
        return (json.dumps(head, ensure_ascii=False)[:-1] + f', "data": [{data}]}}').encode()

    content = await large_work.run(write) if size > _LARGE_VALUES else write()
    return Response(content, media_type="application/json")


def encode_vector(values: array[float], options: VectorOptions) -> list[float] | str:
    """A vector in the requested encoding."""
    if options.encoding_format == "float":
        return values.tolist()
    return to_base64(values, half=options.embed_dtype == "float16", endianness=options.endianness)


def to_base64(values: array[float], *, half: bool = False, endianness: str = "little") -> str:
    order = sys.byteorder if endianness == "native" else endianness
    sign = "<" if order == "little" else ">"
    packed = struct.pack(f"{sign}{len(values)}{'e' if half else 'f'}", *values)
    return base64.b64encode(packed).decode()
