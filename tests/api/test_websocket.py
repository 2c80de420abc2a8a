"""WebSockets through the proxy, between two real peers of the `websockets` package."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.http11 import Request, Response

from instance_manager.types import Endpoint
from tests.api.upstreams import LOOPS, Front, StubLeases, Upstream, Wire, berth, eventually, request, upstream

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
Handler = Callable[[ServerConnection], Awaitable[None]]


@pytest.fixture(params=LOOPS, ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@contextlib.asynccontextmanager
async def engine_with(handler: Handler, **options: Any) -> AsyncIterator[Upstream]:
    async with serve(handler, "127.0.0.1", 0, **options) as server:
        yield Upstream(Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], "engine-key", 1))


def through(front: Front, path: str = "/x", **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{front.port}/proxy/one{path}", proxy=None, **options)


async def echo(socket: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await socket.send(await socket.recv())


async def test_messages_pass_both_ways_with_their_kind() -> None:
    async with engine_with(echo) as engine, berth(engine) as front, through(front) as socket:
        for message in ("text", "", b"bytes", b"", "ünïcode", b"x" * 1_000_000):
            await socket.send(message)
            assert await socket.recv() == message
        assert front.leases.num_out == 1
        assert front.metrics.of("one", "").in_flight == 1


async def test_the_handshake_carries_path_headers_key_and_subprotocol() -> None:
    seen: list[Request] = []

    async def keep(socket: ServerConnection) -> None:
        assert socket.request is not None
        seen.append(socket.request)
        await socket.wait_closed()

    async with engine_with(keep, subprotocols=["realtime"]) as engine, berth(engine) as front:
        headers = [("Authorization", "Bearer mine"), ("X-Api-Key", "mine"), ("Api-Key", "mine")]
        headers += [("X-Own", "1"), ("X-Own", "2"), ("X-Request-Id", "r1")]
        options = {
            "additional_headers": headers,
            "subprotocols": ["other", "realtime"],
            "user_agent_header": "me",
        }
        async with through(front, "/v1/a%2Fb?q=%3D&q", **options) as socket:
            assert socket.subprotocol == "realtime"
            assert socket.response is not None and socket.response.headers["X-Request-Id"] == "r1"
        sent = seen[0]
        assert sent.path == "/v1/a%2Fb?q=%3D&q"
        assert sent.headers.get_all("Authorization") == ["Bearer engine-key"]
        assert sent.headers.get_all("X-Api-Key") == sent.headers.get_all("Api-Key") == []
        assert sent.headers.get_all("X-Own") == ["1", "2"]
        assert sent.headers.get_all("X-Request-Id") == ["r1"]
        assert sent.headers.get_all("User-Agent") == ["me"]
        assert sent.headers.get_all("Host") == [f"127.0.0.1:{engine.endpoint.port}"]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (4321, "own reason")])
async def test_the_engines_close_reaches_the_client(code: int, reason: str) -> None:
    async def close(socket: ServerConnection) -> None:
        await socket.close(code, reason)

    async with engine_with(close) as engine, berth(engine) as front, through(front) as socket:
        with pytest.raises(ConnectionClosed) as raised:
            await socket.recv()
        assert raised.value.rcvd is not None
        assert (raised.value.rcvd.code, raised.value.rcvd.reason) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4321, "own reason")])
async def test_the_clients_close_reaches_the_engine(code: int, reason: str) -> None:
    closed: asyncio.Future[tuple[int | None, str | None]] = asyncio.get_running_loop().create_future()

    async def wait(socket: ServerConnection) -> None:
        await socket.wait_closed()
        closed.set_result((socket.close_code, socket.close_reason))

    async with engine_with(wait) as engine, berth(engine) as front:
        async with through(front) as socket:
            await socket.close(code, reason)
        assert await closed == (code, reason)


async def test_a_client_that_vanishes_frees_the_engine() -> None:
    closed = asyncio.Event()

    async def wait(socket: ServerConnection) -> None:
        await socket.wait_closed()
        closed.set()

    async with engine_with(wait) as engine, berth(engine) as front, through(front) as socket:
        await eventually(lambda: front.leases.num_out == 1)
        socket.transport.abort()
        async with asyncio.timeout(2):
            await closed.wait()


async def test_an_engine_that_vanishes_is_not_a_clean_end() -> None:
    async def vanish(socket: ServerConnection) -> None:
        await socket.recv()
        socket.transport.abort()

    async with engine_with(vanish) as engine, berth(engine) as front, through(front) as socket:
        await socket.send("go")
        with pytest.raises(ConnectionClosedError) as raised:
            await socket.recv()
        assert raised.value.rcvd is not None and raised.value.rcvd.code == 1011


async def test_a_refusal_passes_with_status_and_body() -> None:
    def refuse(socket: ServerConnection, request: Request) -> Response:
        return socket.respond(418, "no sockets here\n")

    async with engine_with(echo, process_request=refuse) as engine, berth(engine) as front:
        with pytest.raises(InvalidStatus) as raised:
            await through(front)
        assert raised.value.response.status_code == 418
        assert raised.value.response.body == b"no sockets here\n"
        await eventually(lambda: front.metrics.of("one", "").requests == {("WEBSOCKET", 418): 1})


async def test_an_engine_without_websockets_is_502() -> None:
    async def garbage(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"SSH-2.0\r\n\r\n")

    async with upstream(garbage) as engine, berth(engine) as front:
        with pytest.raises(InvalidStatus) as raised:
            await through(front)
        assert raised.value.response.status_code == 502
        assert json.loads(raised.value.response.body or b"")["error"]["type"] == "upstream_error"


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_passed_on_and_not_followed(status: int) -> None:
    """It could lead anywhere, and the client's headers would be sent there."""
    asked: list[Request] = []

    def note(_: ServerConnection, request: Request) -> None:
        asked.append(request)

    async with engine_with(echo, process_request=note) as elsewhere:
        location = f"ws://127.0.0.1:{elsewhere.endpoint.port}/stolen"

        def redirect(socket: ServerConnection, _: Request) -> Response:
            response = socket.respond(status, "there")
            response.headers["Location"] = location
            return response

        async with engine_with(echo, process_request=redirect) as engine, berth(engine) as front:
            wire = await front.connect()
            await wire.send(request("/proxy/one/x", *UPGRADE, "X-Own: mine"))
            head = await wire.read_head()
            assert (head.status, head.get(b"location")) == (status, location.encode())
            await wire.close()
    assert asked == []


async def test_a_key_among_the_subprotocols_is_not_forwarded() -> None:
    seen: list[Request] = []

    async def keep(socket: ServerConnection) -> None:
        assert socket.request is not None
        seen.append(socket.request)

    offered = ["openai-insecure-api-key.mine", "realtime", "OpenAI-Insecure-API-Key.mine"]
    async with (
        engine_with(keep, subprotocols=["realtime"]) as engine,
        berth(engine) as front,
        through(front, subprotocols=offered) as socket,
    ):
        assert socket.subprotocol == "realtime"
    assert seen[0].headers.get_all("Sec-WebSocket-Protocol") == ["realtime"]


async def test_an_unknown_instance_is_404() -> None:
    async with berth(StubLeases()) as front:
        with pytest.raises(InvalidStatus) as raised:
            await through(front)
        assert raised.value.response.status_code == 404


async def test_a_disconnect_in_the_queue_leaves_no_lease() -> None:
    leases = StubLeases()
    leases.pending["one"] = asyncio.get_running_loop().create_future()
    async with berth(leases) as front:
        wire = await front.connect()
        await wire.send(request("/proxy/one/x", *UPGRADE))
        await leases.until(lambda: leases.num_waiting == 1)
        await wire.close()
        await leases.until(lambda: leases.num_waiting == 0)
        leases.pending["one"].cancel()


async def test_a_slow_client_slows_the_engine() -> None:
    num_sent = 0

    async def flood(socket: ServerConnection) -> None:
        nonlocal num_sent
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.send(b"x" * 100_000)
                num_sent += 1

    # Uncompressed: packed, thousands of these would fit into the kernel's buffers.
    async with (
        engine_with(flood) as engine,
        berth(engine) as front,
        through(front, max_queue=1, compression=None) as socket,
    ):
        await asyncio.sleep(0.5)
        before = num_sent
        await asyncio.sleep(0.3)
        assert num_sent == before < 400
        socket.transport.abort()


@pytest.mark.parametrize(
    "target", ["/x#y", "/x?a=#b", "/#", "/x#", "/x%23y", "/x[", "/x\\y", "/\xff", "/x?\xff", "/x^{|}`"]
)
async def test_an_invalid_target_is_a_bad_request(target: str, caplog: pytest.LogCaptureFixture) -> None:
    """An invalid target is the client's error; all others arrive unchanged."""
    seen: list[str] = []

    async def keep(socket: ServerConnection) -> None:
        assert socket.request is not None
        seen.append(socket.request.path)

    async with engine_with(keep) as engine, berth(engine) as front:
        upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        wire = await front.connect()
        try:
            await wire.send(request(f"/proxy/one{target}", *upgrade, key))
            status = (await wire.reader.readline()).split()[1]
        finally:
            await wire.close()
        if "#" in target or not target.isascii():
            assert status == b"400"
            assert not seen
        else:
            assert status == b"101", status
            assert seen == [target]
        assert not [one for one in caplog.records if one.exc_info]
