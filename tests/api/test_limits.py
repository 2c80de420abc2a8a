"""Limits for one client: long heads and bodies, slow ones, too many connections. With raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import uvicorn

from api.http.asgi import Receive, Scope, Send
from api.server.descriptors import connections_within
from api.server.limits import ConnectionLimits
from api.server.protocol import HttpProtocol, HttpServer
from api.server.request_cycle import RequestCycle

LIMITS = ConnectionLimits(
    max_connections=4,
    max_body_bytes=1000,
    max_head_bytes=2048,
    max_headers=20,
    head_timeout_s=0.4,
    body_timeout_s=0.4,
)
TIMEOUT_S = 20.0


@dataclass
class Echo:
    """Responds with the length of the whole body; records how requests ended."""

    ended: list[str] = field(default_factory=list)
    arrived: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    header_names: list[bytes] = field(default_factory=list)  # of the last request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        size, message = 0, await receive()
        while message["type"] == "http.request":
            size += len(message["body"])
            if not message.get("more_body"):
                break
            message = await receive()
        self.ended.append(message["type"])
        self.header_names = [name for name, _ in scope["headers"]]
        self.arrived.put_nowait(None)
        if scope["path"] == "/slow":
            await asyncio.sleep(0.001)
        if scope["path"] == "/wait" and await self._has_left(receive):
            self.ended.append("left")
            self.arrived.put_nowait(None)
            return
        body = b"x" * 20_000_000 if scope["path"] == "/large" else b"%d" % size
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _has_left(self, receive: Receive) -> bool:
        """Whether the client disconnects before `go` is set."""
        going, leaving = asyncio.ensure_future(self.go.wait()), asyncio.ensure_future(receive())
        await asyncio.wait((going, leaving), return_when=asyncio.FIRST_COMPLETED)
        for waiting in (going, leaving):
            waiting.cancel()
        return not self.go.is_set()


@dataclass
class Served:
    app: Echo
    port: int
    server: uvicorn.Server

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    async def connected(self) -> list[HttpProtocol]:
        """The server's side of all connections, once there are any."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self.server.server_state.connections:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
        return cast(list[HttpProtocol], list(self.server.server_state.connections))


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(self, data: bytes) -> tuple[int, Any]:
        self.write(data)
        return await self.answer()

    async def answer(self) -> tuple[int, Any]:
        """Status, and the error's code or the body."""
        async with asyncio.timeout(TIMEOUT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            body = await self.reader.readexactly(int(length[1]) if length else 0)
        status = int(head.split()[1])
        return status, body if status == 200 else json.loads(body)["error"]["code"]

    async def is_closed(self) -> bool:
        """Whether the server ends the connection without another byte."""
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read() == b""
        return True

    def close(self) -> None:
        self.writer.close()


@contextlib.asynccontextmanager
async def serving(limits: ConnectionLimits) -> AsyncIterator[Served]:
    app = Echo()
    config = uvicorn.Config(
        cast(Any, app), http=HttpServer(limits).protocol(), lifespan="off", log_config=None, loop="asyncio"
    )
    server = uvicorn.Server(config)
    server.config.load()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listening])
        try:
            yield Served(app, listening.getsockname()[1], server)
        finally:
            app.go.set()
            server.should_exit = server.force_exit = True
            await server.shutdown(sockets=[listening])


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(LIMITS) as served:
        yield served


GET = b"GET / HTTP/1.1\r\nhost: x\r\n"


async def test_requests_within_the_limits_are_served(served: Served) -> None:
    client = await served.connect()
    assert await client.ask(GET + b"\r\n") == (200, b"0")
    post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    assert await client.ask(post + b"x" * 1000) == (200, b"1000"), "the same connection"
    chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    assert await client.ask(chunked + b"3\r\nabc\r\n0\r\n\r\n") == (200, b"3")
    client.close()


@pytest.mark.parametrize(
    "head",
    [
        GET + b"a: " + b"x" * 3000 + b"\r\n\r\n",
        b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 3000,
        GET + b"a: " + b"x" * 3000,
        GET + b"a" * 3000,
        GET + b"".join(b"h%d: 1\r\n" % number for number in range(30)) + b"\r\n",
    ],
)
async def test_long_heads_are_refused_whether_complete_or_not(served: Served, head: bytes) -> None:
    client = await served.connect()
    assert await client.ask(head) == (431, "head_too_large")
    assert await client.is_closed()
    assert served.app.ended == []
    client.close()


async def test_a_head_that_grows_slowly_is_counted_too(served: Served) -> None:
    client = await served.connect()
    for _ in range(30):
        client.write(b"GET " if _ == 0 else b"/" * 100)
        await client.writer.drain()
    assert (await client.answer())[0] == 431
    client.close()


async def test_a_body_announced_too_long_is_refused_at_once(served: Served) -> None:
    client = await served.connect()
    head = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1001\r\n\r\n"
    assert await client.ask(head) == (413, "body_too_large")
    assert await client.is_closed()
    assert served.app.ended == []
    client.close()


async def test_a_body_that_becomes_too_long_is_cut_off(served: Served) -> None:
    client = await served.connect()
    client.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    assert await client.ask(b"200\r\n" + b"x" * 512 + b"\r\n200\r\n" + b"x" * 512) == (413, "body_too_large")
    client.write(b"x" * 100_000)  # it continues all the same
    assert await client.is_closed()
    assert served.app.ended == ["http.disconnect"]
    client.close()


@pytest.mark.parametrize("more", [b"a: b\r\n" * 100, b"x" * 700], ids=["trailers", "one trailer"])
async def test_trailers_without_end_are_refused(served: Served, more: bytes) -> None:
    client = await served.connect()
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\na: "
    client.write(head)
    for _ in range(4):
        await client.writer.drain()
        await asyncio.sleep(0.02)  # so that it arrives in pieces
        client.write(more)
    assert await client.answer() == (431, "head_too_large")
    assert await client.is_closed()
    client.close()


async def test_a_trailer_is_not_a_header(served: Served) -> None:
    client = await served.connect()
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    assert await client.ask(head + b"authorization: Bearer x\r\n\r\n") == (200, b"3")
    assert served.app.header_names == [b"host", b"transfer-encoding"]
    client.close()


async def test_a_silent_connection_is_closed(served: Served) -> None:
    client = await served.connect()
    assert await client.is_closed()
    client.close()


async def test_a_trickling_head_does_not_extend_its_time(served: Served) -> None:
    client = await served.connect()

    async def trickle() -> None:
        client.write(GET)
        while True:
            client.write(b"a: b\r\n")
            await asyncio.sleep(0.1)

    trickling = asyncio.create_task(trickle())
    assert await client.answer() == (408, "head_timeout")
    trickling.cancel()
    client.close()


async def test_a_second_head_is_timed_too(served: Served) -> None:
    client = await served.connect()
    assert await client.ask(GET + b"\r\n") == (200, b"0")
    assert await client.ask(b"GET / HT") == (408, "head_timeout")
    client.close()


async def test_a_stalled_body_times_out(served: Served) -> None:
    client = await served.connect()
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n"
    assert await client.ask(head + b"x") == (408, "body_timeout")
    assert served.app.ended == ["http.disconnect"]
    client.close()


async def test_a_slow_body_does_not_time_out() -> None:
    async with serving(ConnectionLimits(body_timeout_s=2.0)) as served:
        client = await served.connect()
        client.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n")
        for _ in range(5):
            await asyncio.sleep(0.5)
            client.write(b"x")
        assert await client.answer() == (200, b"5")
        client.close()


async def test_a_response_may_take_any_time(served: Served) -> None:
    client = await served.connect()
    client.write(GET.replace(b"/", b"/wait", 1) + b"\r\n")
    await asyncio.sleep(3 * LIMITS.head_timeout_s)
    served.app.go.set()
    assert await client.answer() == (200, b"0")
    client.close()


async def test_at_the_connection_limit_idle_connections_are_evicted() -> None:
    async with serving(ConnectionLimits(max_connections=4)) as served:
        idle = [await served.connect() for _ in range(4)]
        for _ in range(20):
            client = await served.connect()
            assert await client.ask(GET + b"\r\n") == (200, b"0")
            idle.append(client)
        assert await idle[0].is_closed()
        for client in idle:
            client.close()


async def test_connections_in_use_are_not_evicted() -> None:
    async with serving(ConnectionLimits(max_connections=2)) as served:
        busy = [await served.connect() for _ in range(2)]
        for client in busy:
            client.write(GET.replace(b"/", b"/wait", 1) + b"\r\n")
        async with asyncio.timeout(TIMEOUT_S):
            for _ in busy:
                await served.app.arrived.get()
        third = await served.connect()
        assert await third.answer() == (503, "busy")
        served.app.go.set()
        assert [await client.answer() for client in busy] == [(200, b"0")] * 2
        for client in (*busy, third):
            client.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3, 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0x3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\nabc\n0\n\n",
        b"GET / HTTP/1.1\nhost: x\n\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n a: folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na: b\rc: d\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
        b"GET / HTTP/0.9\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
    ],
)
async def test_requests_with_ambiguous_length_are_refused(served: Served, request_: bytes) -> None:
    """And the connection is closed, so nothing can follow on it."""
    client = await served.connect()
    client.write(request_ + GET + b"\r\n")
    assert await client.answer() == (400, "bad_http")
    assert await client.is_closed()
    assert "http.request" not in served.app.ended
    client.close()


@pytest.mark.parametrize(
    "refused",
    [
        b"nonsense\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://a:b:c/ HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://x?y HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
        GET + b"a: " + b"x" * 3000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_refusal_is_never_sent_as_an_earlier_requests_response(
    served: Served, refused: bytes
) -> None:
    client = await served.connect()
    client.write(GET.replace(b"/", b"/wait", 1) + b"\r\n")
    async with asyncio.timeout(TIMEOUT_S):
        await served.app.arrived.get()
    client.write(refused)
    assert await client.is_closed()
    client.close()


async def test_pipelined_requests_are_not_read_far_ahead() -> None:
    async with serving(ConnectionLimits()) as served:
        client = await served.connect()
        many, most = 5_000, 0
        client.write((GET.replace(b"/", b"/slow", 1) + b"a: " + b"x" * 1500 + b"\r\n\r\n") * many)
        (protocol,) = await served.connected()
        for _ in range(500):
            assert await client.answer() == (200, b"0")
            most = max(most, len(protocol.pipeline))
        assert most < 400, "one read brings some 170"
        client.close()


async def test_the_current_of_several_requests_sees_the_disconnect() -> None:
    async with serving(ConnectionLimits()) as served:
        client = await served.connect()
        for _ in range(3):
            client.write(GET.replace(b"/", b"/wait", 1) + b"\r\n")
        async with asyncio.timeout(TIMEOUT_S):
            await served.app.arrived.get()
            client.close()
            await served.app.arrived.get()
    assert served.app.ended == ["http.request", "left"]


async def test_requests_and_connections_leave_no_reference_cycles() -> None:
    """Else the garbage collector would have to find them, all the time."""

    def alive() -> list[Any]:
        return [found for found in gc.get_objects() if type(found) in (HttpProtocol, RequestCycle)]

    def left() -> list[Any]:
        return [found for found in alive() if not any(found is one for one in earlier)]

    async with serving(ConnectionLimits()) as served:
        gc.collect()
        earlier = alive()  # of other tests
        gc.disable()
        try:
            for request in (
                GET + b"\r\n",
                b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab",
                b"nonsense\r\n\r\n",
            ):
                client = await served.connect()
                await client.ask(request)
                client.close()
            async with asyncio.timeout(TIMEOUT_S):
                while left():  # noqa: ASYNC110 - nothing announces it
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()


def test_connections_are_limited_by_descriptors() -> None:
    assert connections_within(1024, 4096) == 384
    assert connections_within(65536, 4096) == 4096
    assert connections_within(100, 4096) == 1
