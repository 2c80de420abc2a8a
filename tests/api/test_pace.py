"""Slow clients while others wait: stalled ones are cut off, steady ones are not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from api.http.response_channel import FastPathApp, ResponseChannel, ResumeAsTask, without_channel
from api.proxy.pace import PaceRules
from instance_manager.types import Endpoint
from tests.api.upstreams import Front, Upstream, Wire, berth, eventually, request, upstream

RULES = PaceRules(stall_s=0.6, bytes_per_s=10_000)
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"use_uvloop": True})


class Engine:
    """Sends endlessly, and notices when the connection ends."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.num_taken = 0

    async def send(self, wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                await wire.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        self.left.set()

    async def take(self, wire: Wire) -> None:
        await wire.read_head()
        while piece := await wire.reader.read(65536):
            self.num_taken += len(piece)
        self.left.set()


@contextlib.asynccontextmanager
async def stuck(front: Front, size: int = 0) -> AsyncIterator[Wire]:
    """A client that reads nothing; with `size` it sends part of a body of that many bytes."""
    wire = await front.connect()
    if size:
        head = f"POST /proxy/one/x HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
        await wire.send(head.encode() + b"x")
    else:
        await wire.send(request())
    wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await eventually(lambda: front.leases.num_out == 1)
    yield wire
    wire.writer.transport.abort()


async def test_a_client_that_reads_nothing_is_cut_off_if_others_wait() -> None:
    engine = Engine()
    async with upstream(engine.send) as one, berth(one, pace=RULES) as front, stuck(front):
        front.leases.others_wait = True
        async with asyncio.timeout(3):
            await engine.left.wait()
        await eventually(lambda: front.leases.num_out == 0)
        await eventually(lambda: not front.server.server_state.connections)


async def test_a_stalled_client_is_left_alone_until_another_waits() -> None:
    engine = Engine()
    async with upstream(engine.send) as one, berth(one, pace=RULES) as front, stuck(front):
        await asyncio.sleep(3 * RULES.stall_s)
        assert front.leases.num_out == 1
        front.leases.others_wait = True
        async with asyncio.timeout(3):
            await engine.left.wait()


async def test_a_client_that_sends_none_of_its_body_is_cut_off_too() -> None:
    engine = Engine()
    async with upstream(engine.take) as one, berth(one, pace=RULES) as front, stuck(front, size=1000):
        front.leases.others_wait = True
        async with asyncio.timeout(3):
            await engine.left.wait()
        await eventually(lambda: front.leases.num_out == 0)


async def test_a_client_that_trickles_its_body_is_cut_off() -> None:
    engine = Engine()
    async with upstream(engine.take) as one, berth(one, pace=RULES) as front:
        front.leases.others_wait = True
        async with stuck(front, size=1000) as wire, asyncio.timeout(3):
            while not engine.left.is_set():
                await wire.send(b"x")
                await asyncio.sleep(0.05)


async def test_a_slow_but_steady_client_is_served_to_the_end() -> None:
    size = 8 * MIB

    async def answer(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, b"x" * size)

    async with upstream(answer) as one, berth(one, pace=RULES) as front:
        front.leases.others_wait = True
        loop, num_read = asyncio.get_running_loop(), 0
        with socket.socket() as client:
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB
            )  # what it has read is noticed soon
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", front.port))
            await loop.sock_sendall(client, request())
            until = loop.time() + 3 * RULES.stall_s
            while piece := await loop.sock_recv(client, 16 * KIB):
                num_read += len(piece)
                if loop.time() < until:
                    await asyncio.sleep(0.05)
                if num_read > size:
                    break
        assert num_read > size


async def test_a_slow_engine_is_not_blamed_on_the_client() -> None:
    async def answer(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        for _ in range(5):
            await asyncio.sleep(RULES.stall_s / 2)
            await wire.send(b"x")

    async with upstream(answer) as one, berth(one, pace=RULES) as front:
        front.leases.others_wait = True
        assert (await front.ask(request()))[1] == b"xxxxx"


class Translated:
    """Like a protocol adapter in front of the data plane: responses go by `send` alone."""

    def __init__(self, app: FastPathApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def passed_on(message: Any) -> None:
            await send(message)

        await self._app(without_channel(scope), receive, passed_on)

    def begin(self, scope: Any, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask) -> bool:
        return False


async def test_clients_of_other_protocols_are_cut_off_too() -> None:
    engine = Engine()
    async with upstream(engine.send) as one, berth(one, pace=RULES, behind=Translated) as front:
        front.leases.others_wait = True
        async with stuck(front), asyncio.timeout(3):
            await engine.left.wait()


async def test_a_websocket_whose_client_reads_nothing_is_cut_off() -> None:
    left = asyncio.Event()

    async def flood(client: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await client.send(b"x" * 100_000)
        left.set()

    async with serve(flood, "127.0.0.1", 0, ping_interval=None) as server:
        engine = Upstream(Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], "engine-key", 1))
        url = "ws://127.0.0.1:{}/proxy/one/x"
        async with berth(engine, pace=RULES) as front:
            client = await connect(url.format(front.port), proxy=None, compression=None, max_queue=1)
            await asyncio.sleep(2 * RULES.stall_s)
            assert not left.is_set()
            front.leases.others_wait = True
            async with asyncio.timeout(3):
                await left.wait()
            await eventually(lambda: front.leases.num_out == 0)
            client.transport.abort()
