"""A request's target decides where it goes; the data plane serves targets of any kind alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from api.http.asgi import Receive, Scope, Send
from api.http.buffered_body import replaying
from api.http.headers import find_header
from api.http.response_channel import FastPathApp, as_translated
from api.proxy.peer_routes import PeerRoutes
from api.proxy.target import Target, UpstreamLease
from api.proxy.upstream_request import UpstreamRequest
from instance_manager.metrics.proxy import ProxyMetrics
from instance_manager.state.peers import Peers
from instance_manager.state.stores.records import InstanceRecord, Owner
from instance_manager.types import Endpoint, InstanceSpec, InstanceState
from tests.api.upstreams import (
    LOOPS,
    Front,
    Head,
    StubLease,
    StubLeases,
    Upstream,
    Wire,
    berth,
    free_port,
    request,
    response,
    upstream,
)


@pytest.fixture(params=LOOPS, ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class SomewhereTarget(Target):
    """A kind that the data plane has never seen: it leases from `endpoints`, one after the other."""

    name = "somewhere"
    path = b"/there?x=1"
    headers = ((b"x-way", b"far"),)

    def __init__(self, leases: StubLeases, endpoints: list[Endpoint], *, must_wait: bool = False) -> None:
        self._leases = leases
        self._endpoints = endpoints
        self._must_wait = must_wait
        self.num_failed = 0

    def try_acquire(self) -> StubLease | None:
        return None if self._must_wait else self._next()

    async def acquire(self) -> StubLease:
        await asyncio.sleep(0)
        return self._next()

    async def prepare(self, lease: UpstreamLease, request: UpstreamRequest, receive: Receive) -> Receive:
        body = b"for port %d" % lease.endpoint.port
        request.headers = request.headers.with_length(len(body))
        return replaying(body, receive)

    async def may_retry(self, lease: UpstreamLease) -> bool:
        return bool(self._endpoints)

    def failed(self) -> None:
        self.num_failed += 1

    def _next(self) -> StubLease:
        endpoint = self._endpoints.pop(0)
        return StubLease(self._leases, f"engine-{endpoint.port}", endpoint)


def refusing() -> Endpoint:
    """An endpoint where no engine listens."""
    return Endpoint("127.0.0.1", free_port(), "", 1)


@contextlib.asynccontextmanager
async def sending_to(make: Callable[[StubLeases], Target]) -> AsyncIterator[Front]:
    """A front door whose data plane gets every request with the target from `make`."""
    fronts: list[Front] = []

    class Sender:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            (front,) = fronts
            await front.plane.forward(scope, receive, send, make(front.leases))

        def begin(self, *_: object) -> bool:
            return False

    def behind(_: FastPathApp) -> FastPathApp:
        return Sender()

    async with berth(StubLeases(), behind=behind) as front:
        fronts.append(front)
        yield front


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[Upstream]:
    """An engine that answers with the request line, the header x-way, and the body."""

    async def script(wire: Wire) -> None:
        while True:
            head, body = await wire.read_message()
            await wire.send(response(b"%b|%b|%b" % (head.line, head.get(b"x-way") or b"", body)))

    async with upstream(script) as engine:
        yield engine


@pytest.mark.parametrize("must_wait", [False, True])
async def test_path_headers_and_body_are_the_targets(must_wait: bool) -> None:
    async with (
        echo() as engine,
        sending_to(lambda leases: SomewhereTarget(leases, [engine.endpoint], must_wait=must_wait)) as front,
    ):
        head, body = await front.ask(request("/anywhere", method="POST", body=b"as it came"))
    expected = b"POST /there?x=1 HTTP/1.1|far|for port %d" % engine.endpoint.port
    assert (head.status, body) == (200, expected)


async def test_a_target_may_send_the_request_to_another_engine() -> None:
    async with (
        echo() as engine,
        sending_to(lambda leases: SomewhereTarget(leases, [refusing(), engine.endpoint])) as front,
    ):
        head, body = await front.ask(request("/anywhere", method="POST", body=b"as it came"))
    assert head.status == 200
    assert body.endswith(b"for port %d" % engine.endpoint.port)  # prepared again, for the engine that got it


async def test_a_target_hears_of_a_failure_once() -> None:
    targets: list[SomewhereTarget] = []

    def make(leases: StubLeases) -> Target:
        targets.append(SomewhereTarget(leases, [refusing(), refusing()]))
        return targets[-1]

    async with sending_to(make) as front:
        head, _ = await front.ask(request("/anywhere"))
    assert head.status == 502
    assert [target.num_failed for target in targets] == [1]


# Targets on other nodes.


def peers_at(**ports: int) -> Peers:
    """Other nodes by name; each has an instance, `of-NODE`, of the model "m"."""
    peers = Peers()
    peers.replace(
        [
            InstanceRecord(f"of-{node}", InstanceState.RUNNING, node, InstanceSpec("m", "engine"), "m", "m")
            for node in ports
        ],
        [Owner(node, 1, 60.0, f"http://127.0.0.1:{port}") for node, port in ports.items()],
    )
    return peers


async def test_a_peer_gets_path_and_key_unchanged() -> None:
    asked: list[Head] = []

    async def script(wire: Wire) -> None:
        head, _ = await wire.read_message()
        asked.append(head)
        await wire.send(response())

    async with upstream(script) as node, berth(StubLeases(), peers=peers_at(b=node.endpoint.port)) as front:
        head, _ = await front.ask(request("/proxy/of-b/x?y=%20", "Authorization: Bearer mine"))
    assert (head.status, asked[0].line) == (200, b"GET /proxy/of-b/x?y=%20 HTTP/1.1")
    assert asked[0].get(b"authorization") == b"Bearer mine"
    assert asked[0].get(b"x-berth-via") == b"here"


def test_a_peer_is_told_that_its_response_is_translated_here() -> None:
    routes = PeerRoutes(peers_at(b=1), ProxyMetrics(), lambda: "here")
    scope = {"type": "http", "raw_path": b"/v1/chat/completions", "query_string": b"", "headers": []}
    for asked, expected in ((scope, b""), (as_translated(scope), b"1")):
        target = routes.to_unknown(asked, "m")
        assert target is not None and find_header(target.headers, b"x-berth-translated") == expected


@pytest.mark.parametrize("is_websocket", [False, True])
async def test_an_unreachable_peer_is_avoided_whatever_the_request_was(is_websocket: bool) -> None:
    peers = peers_at(a=free_port(), b=free_port())
    async with berth(StubLeases(), peers=peers) as front:
        if is_websocket:
            with pytest.raises(InvalidStatus) as raised:
                await connect(f"ws://127.0.0.1:{front.port}/proxy/of-a/x")
            status = raised.value.response.status_code
        else:
            status = (await front.ask(request("/proxy/of-a/x")))[0].status
    assert status == 502
    owners = {owner.owner for _ in range(4) if (owner := peers.owner_running("m")) is not None}
    assert owners == {"b"}
