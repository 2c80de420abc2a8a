"""Bodies of any size in constant memory, back-pressure in both directions, early responses."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psutil
import pytest

from api.proxy.upstream_pool import UpstreamOptions
from tests.api.upstreams import LOOPS, Wire, berth, eventually, request, response, upstream

MB = 1024 * 1024
PIECE = bytes(range(256)) * 1024  # 256 KB
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=LOOPS, ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Memory:
    """Peak memory of this process, which is client, Berth and engine at once."""

    def __init__(self) -> None:
        self.before = self.peak = psutil.Process().memory_info().rss

    def look(self) -> None:
        self.peak = max(self.peak, psutil.Process().memory_info().rss)

    @property
    def growth(self) -> int:
        return self.peak - self.before


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_trap_12_an_upload_of_any_size_uses_constant_memory(is_chunked: bool) -> None:
    num_pieces = 800  # 200 MB
    received = 0
    memory = Memory()

    async def script(wire: Wire) -> None:
        nonlocal received
        head = await wire.read_head()
        if is_chunked:
            while chunk := await wire.read_chunk():
                received += len(chunk)
                memory.look()
        else:
            while received < int(head.get(b"content-length") or 0):
                received += len(await wire.reader.read(MB))
                memory.look()
        await wire.send(response(b"done"))

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        length = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {num_pieces * len(PIECE)}"
        await wire.send(request("/proxy/one/x", length, method="POST"))
        for _ in range(num_pieces):
            await wire.send(b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if is_chunked else PIECE)
        if is_chunked:
            await wire.send(b"0\r\n\r\n")
        assert (await wire.read_message())[1] == b"done"
        await wire.close()
        assert front.metrics.of("one", "").bytes_in == received
    assert received == num_pieces * len(PIECE)
    assert memory.growth < 40 * MB


async def test_trap_12_a_download_of_any_size_uses_constant_memory() -> None:
    num_pieces = 800
    memory = Memory()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (num_pieces * len(PIECE)))
        for _ in range(num_pieces):
            await wire.send(PIECE)

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(request())
        await wire.read_head()
        for _ in range(num_pieces):
            assert await wire.reader.readexactly(len(PIECE)) == PIECE
            memory.look()
        await wire.close()
    assert memory.growth < 40 * MB


async def fill(wire: Wire, piece: bytes, limit: int) -> int:
    """Send until nothing moves for a while, or `limit` bytes are sent; returns the number of bytes."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < limit:
            async with asyncio.timeout(0.5):
                await wire.send(piece)
            sent += len(piece)
    return sent


async def test_a_client_that_does_not_read_slows_the_engine() -> None:
    filled: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1024 * MB))
        filled.set_result(await fill(wire, PIECE, 200 * MB))
        await wire.wait_closed()

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(request())
        # The kernel's socket buffers in both directions, and little more.
        assert await filled < 40 * MB
        await wire.close()


async def test_an_engine_that_does_not_read_slows_the_client_and_times_out() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await asyncio.Event().wait()

    async with upstream(script) as engine, berth(engine, UpstreamOptions(stall_timeout_s=1)) as front:
        wire = await front.connect()
        await wire.send(request("/proxy/one/x", f"Content-Length: {1024 * MB}", method="POST"))
        assert await fill(wire, PIECE, 200 * MB) < 40 * MB
        assert (await wire.read_head()).status == 504
        wire.reset()


@pytest.mark.parametrize("closes", [False, True], ids=["keeps", "closes"])
async def test_trap_13_an_early_refusal_reaches_the_client_and_the_upload_stops(closes: bool) -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.reader.readexactly(1000)
        await wire.send(response(b"too large", status="413 Content Too Large"))
        if not closes:
            await wire.wait_closed()  # Berth discards the connection: its request was never completed

    async with upstream(script) as engine, berth(engine) as front:
        for _ in range(5):
            wire = await front.connect()
            await wire.send(request("/proxy/one/x", f"Content-Length: {10 * MB}", method="POST"), PIECE)
            head, body = await wire.read_message()
            assert (head.status, body) == (413, b"too large")
            for _ in range(10 * MB // len(PIECE) - 1):
                await wire.send(PIECE)  # a client that sends on regardless is served on the same connection
            await wire.send(request("/other"))
            assert (await wire.read_message())[1] == b"control"
            await wire.close()
        assert front.plane.pools.num_open == 0


async def test_both_directions_flow_at_once() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(CHUNKED_HEAD)
        while chunk := await wire.read_chunk():
            await wire.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await wire.send(b"0\r\n\r\n")
        await wire.wait_closed()

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(request("/proxy/one/x", "Transfer-Encoding: chunked", method="POST"), b"1\r\na\r\n")
        assert (await wire.read_head()).status == 200
        assert await wire.read_chunk() == b"a"
        for word in (b"echo", b"this"):
            await wire.send(b"4\r\n%b\r\n" % word)
            assert await wire.read_chunk() == word
        await wire.send(b"0\r\n\r\n")
        assert await wire.read_chunk() == b""
        await wire.close()
        await eventually(lambda: front.plane.pools.num_open == 1)
        assert next(iter(front.plane.pools._pools.values())).num_idle == 1
