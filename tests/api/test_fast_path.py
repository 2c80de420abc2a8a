"""The fast path of short requests: when it is taken, and that leaving it keeps the request's state."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.http.asgi import Scope
from api.http.dispatch import raw_path
from api.http.response_channel import FastPathApp, Handler
from api.http.route import RoutedApp, Router
from api.proxy.proxy import DataPlane
from tests.api.upstreams import Front, Wire, berth, eventually, request, response, upstream


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Targets that needed a task."""
    targets: list[str] = []
    original = DataPlane._serve

    async def recording(self: DataPlane, call: Any, *rest: Any) -> None:
        targets.append(call.request.target.decode())
        await original(self, call, *rest)

    monkeypatch.setattr(DataPlane, "_serve", recording)
    return targets


async def echo(wire: Wire) -> None:
    while True:
        head, body = await wire.read_message()
        if b"slow" in head.line:
            await asyncio.sleep(0.1)
        if b"parts" in head.line:
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await asyncio.sleep(0.05)
            await wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        elif b"chunks" in head.line:
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        elif b"break" in head.line:
            return
        else:
            await wire.send(response(body or b"empty"))


async def post(front: Front, target: str) -> bytes:
    return (await front.ask(request(f"/proxy/one/{target}", method="POST", body=b"hello")))[1]


async def test_a_short_request_needs_no_task(served: list[str]) -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        assert await post(front, "first") == b"hello"  # has to connect
        for target in ("second", "third"):
            assert await post(front, target) == b"hello"
        assert await post(front, "chunks") == b"ok"  # leaves with a length
        assert (await front.ask(request()))[1] == b"empty"
        assert engine.num_connections == 1
        assert front.metrics.of("one", "").requests == {("POST", 200): 4, ("GET", 200): 1}
        assert front.metrics.of("one", "").bytes_in == 20
    assert served == ["/first"]


@pytest.mark.parametrize("target", ["slow", "parts"])
async def test_a_slow_or_chunked_response_gets_a_task(target: str, served: list[str]) -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        await post(front, "first")
        assert await post(front, target) == b"hello"
        assert engine.num_connections == 1
        assert front.metrics.of("one", "").bytes_in == 10
    assert served == ["/first", f"/{target}"]


async def test_an_idempotent_request_is_retried_in_a_task(served: list[str]) -> None:
    num_breaks = 0

    async def script(wire: Wire) -> None:
        nonlocal num_breaks
        for _ in range(2):
            await wire.read_message()
            if engine.num_connections == 1 and served:
                num_breaks += 1
                if num_breaks == 2:
                    return
            await wire.send(response(b"ok"))

    async with upstream(script) as engine, berth(engine) as front:
        assert (await front.ask(request()))[1] == b"ok"
        assert (await front.ask(request("/proxy/one/again")))[1] == b"ok"
        assert engine.num_connections == 2
    assert served == ["/x", "/again"]


async def test_pipelined_requests_keep_their_order(served: list[str]) -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        await post(front, "first")
        wire = await front.connect()
        bodies = [b"a", b"b", b"c"]
        targets = ["slow", "x", "parts"]
        await wire.send(
            *(
                request(f"/proxy/one/{target}", method="POST", body=body)
                for target, body in zip(targets, bodies, strict=True)
            )
        )
        assert [(await wire.read_message())[1] for _ in bodies] == bodies
        await wire.close()


async def test_a_disconnect_is_noticed() -> None:
    closed = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b"ok"))
        await wire.read_message()
        await wire.wait_closed()
        closed.set()

    async with upstream(script) as engine, berth(engine) as front:
        assert (await front.ask(request()))[1] == b"ok"
        wire = await front.connect()
        await wire.send(request(method="POST", body=b"{}"))
        await eventually(lambda: front.leases.num_out == 1)
        await wire.close()
        async with asyncio.timeout(0.25):
            await closed.wait()
        await eventually(lambda: front.metrics.of("one", "").requests.get(("POST", 499)) == 1)


class Counting(RoutedApp):
    """A new application in front: all it has is `route`."""

    def __init__(self, app: Router) -> None:
        self._app = app
        self.paths: list[bytes] = []

    def route(self, scope: Scope) -> Handler:
        self.paths.append(raw_path(scope))
        return self._app.route(scope)


async def test_whatever_stands_in_front_keeps_the_fast_path(served: list[str]) -> None:
    """One function routes for both ways in, so none can see a request that the other doesn't."""
    counting: list[Counting] = []

    def behind(app: RoutedApp) -> FastPathApp:
        counting.append(Counting(app))
        return counting[0]

    async with upstream(echo) as engine, berth(engine, behind=behind) as front:
        for target in ("first", "second", "third"):
            assert await post(front, target) == b"hello"
    paths = [b"/proxy/one/first", b"/proxy/one/first", b"/proxy/one/second", b"/proxy/one/third"]
    assert counting[0].paths == paths  # the first had to connect, so ASGI routed it again
    assert served == ["/first"]


async def test_equal_heads_are_routed_once(served: list[str]) -> None:
    counting: list[Counting] = []

    def behind(app: RoutedApp) -> FastPathApp:
        counting.append(Counting(app))
        return counting[0]

    async with upstream(echo) as engine, berth(engine, behind=behind) as front:
        wire = await front.connect()
        for body in (b"a", b"bb", b"ccc", b"dddd"):
            await wire.send(request("/proxy/one/x", method="POST", body=body))
            assert (await wire.read_message())[1] == body
        await wire.close()
    # The first request had to connect and went by ASGI too; the second one's handler serves the others.
    assert len(counting[0].paths) == 3
    assert served == ["/x"]
