"""A waiting stream, and an engine that then responds with something other than a stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from api.gateway.sse_keep_alive import SseKeepAlive
from api.http.asgi import Receive, Scope, Send
from api.http.response_channel import FastPathApp
from tests.api.upstreams import Wire, berth, request, upstream

MIB = 1 << 20
OK, FAILED = b"200 OK", b"500 Broken"


class Waiting:
    """Comments begin at once."""

    def __init__(self, app: FastPathApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = SseKeepAlive(send, 0.01, [(b"x-request-id", b"r1")], b"/v1/chat/completions")
        try:
            await self._app(scope, receive, stream.send)
        finally:
            await stream.close()

    def begin(self, *_: object) -> bool:
        return False


async def events_of(status: bytes, size: int, *, is_chunked: bool) -> tuple[list[str], int, bool]:
    """The client's events, how much of its response the engine could send, and whether it ended well."""
    num_sent = 0

    async def answer(wire: Wire) -> None:
        nonlocal num_sent
        await wire.read_head()
        await asyncio.sleep(0.1)  # comments have begun
        framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % size
        await wire.send(
            b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n" + framing + b"\r\n\r\n"
        )
        while num_sent < size:
            piece = b"[" * min(MIB, size - num_sent)
            await wire.send(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
            num_sent += len(piece)
        if is_chunked:
            await wire.send(b"0\r\n\r\n")

    async with upstream(answer) as engine, berth(engine, behind=Waiting) as front:
        wire = await front.connect()
        await wire.send(request("/proxy/one/x", method="POST", body=b"{}"))
        head = await wire.read_head()
        assert head.status == 200
        body, is_whole = b"", True
        try:
            while chunk := await wire.read_chunk():
                body += chunk
        except asyncio.IncompleteReadError:
            is_whole = False
        await wire.close()
    events = [one for one in body.decode().split("\n\n") if one and not one.startswith(":")]
    return events, num_sent, is_whole


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("status", [OK, FAILED])
async def test_a_body_that_is_not_a_stream_is_limited(status: bytes, is_chunked: bool) -> None:
    events, num_sent, _ = await events_of(status, 600 * MIB, is_chunked=is_chunked)
    assert num_sent < 64 * MIB, "the rest was not read"
    assert len(events) == 1
    error: dict[str, Any] = json.loads(events[0].removeprefix("data: "))["error"]
    assert error["type"] == "upstream_error"
    assert ("more than 1024 KiB instead of the requested stream" in error["message"]) is (status == OK)


async def test_a_short_body_becomes_the_last_event() -> None:
    events, _, is_whole = await events_of(OK, 500_000, is_chunked=False)
    assert is_whole and events == ["data: " + "[" * 500_000]
