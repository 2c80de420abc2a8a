"""Forwarding events: from the connection's callbacks, in order, with back-pressure, counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.proxy.response_reader import ResponseReader
from tests.api.upstreams import LOOPS, Front, Head, Wire, berth, eventually, request, upstream

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
MB = 2**20


@pytest.fixture(params=LOOPS, ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(number: int, size: int = 0) -> bytes:
    return b'data: {"n": %d, "x": "%b"}\n\n' % (number, b"x" * size)


async def open_stream(front: Front) -> tuple[Wire, Head]:
    wire = await front.connect()
    await wire.send(request(method="POST", body=b"{}"))
    return wire, await wire.read_head()


async def test_no_task_is_woken_for_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    num_reads = 0
    original = ResponseReader.read

    async def counting(self: ResponseReader) -> tuple[bytes, bool]:
        nonlocal num_reads
        num_reads += 1
        return await original(self)

    monkeypatch.setattr(ResponseReader, "read", counting)
    may_continue = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(EVENTS)
        for number in range(30):
            await wire.send(chunk(event(number)))
            await may_continue.wait()
            may_continue.clear()
        await wire.send(chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n")

    async with upstream(script) as engine, berth(engine) as front:
        wire, _ = await open_stream(front)
        for number in range(30):
            assert await wire.read_chunk() == event(number)
            may_continue.set()
        assert await wire.read_chunk() == b"data: [DONE]\n\n"
        assert await wire.read_chunk() == b""
        await wire.close()
        metrics = front.metrics.of("one", "")
        expected = sum(len(event(number)) for number in range(30)) + 14
        await eventually(lambda: metrics.bytes_out == expected)
        is_ours = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
        assert num_reads <= 3 if is_ours else num_reads >= 30


async def test_a_late_reader_gets_everything_in_order() -> None:
    num_sent = 0

    async def script(wire: Wire) -> None:
        nonlocal num_sent
        await wire.read_message()
        await wire.send(EVENTS)
        for number in range(400):
            await wire.send(chunk(event(number, 50_000)))
            num_sent = number
        await wire.send(b"0\r\n\r\n")

    async with upstream(script) as engine, berth(engine) as front:
        wire, _ = await open_stream(front)
        seen = -1
        while seen != num_sent:  # until nothing goes any more
            seen = num_sent
            await asyncio.sleep(0.2)
        assert num_sent < 399
        body = b""
        while piece := await wire.read_chunk():
            body += piece
        assert body == b"".join(event(number, 50_000) for number in range(400))
        assert front.metrics.of("one", "").bytes_out == len(body)
        await wire.close()


@pytest.mark.parametrize("is_whole", [True, False])
async def test_an_engine_that_breaks_off_is_reported_in_a_separate_event(is_whole: bool) -> None:
    sent = event(1) if is_whole else event(1)[:-3]
    may_continue = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(EVENTS, chunk(event(0)))
        await may_continue.wait()
        await wire.send(chunk(sent))

    async with upstream(script) as engine, berth(engine) as front:
        wire, _ = await open_stream(front)
        assert await wire.read_chunk() == event(0)
        may_continue.set()
        assert await wire.read_chunk() == sent
        error = await wire.read_chunk()
        assert error.startswith(b"data: {" if is_whole else b"\n\ndata: {")
        assert b"engine_disconnected" in error
        await wire.wait_closed()
        await wire.close()
