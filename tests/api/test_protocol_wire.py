"""Protocols and the cache over real sockets: a client, uvicorn, Berth's data plane, and an engine's bytes.

In place of the gateway stands the least one: it sends every /v1/ path to the one instance there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from api.gateway.response_cache import ResponseCache
from api.http.asgi import App, Receive, Scope, Send
from api.protocols.app import ProtocolApp
from api.protocols.registry import load_protocols
from api.proxy.proxy import DataPlane
from api.proxy.target import InstanceTarget
from instance_manager.metrics.proxy import ProxyMetrics
from tests.api.protocol_apps import chat_answer, chat_stream
from tests.api.upstreams import (
    LOOPS,
    StubLeases,
    Wire,
    eventually,
    num_busy,
    request,
    response,
    server_protocol,
    upstream,
)

PLUGINS = ["docs.examples.alpaca:AlpacaProtocol", "docs.examples.summarize:SummarizeProtocol"]
STREAMED = {"prompt": "Hello", "stream": True}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=LOOPS, ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Front:
    port: int
    plane: DataPlane
    leases: StubLeases
    client: httpx.AsyncClient

    async def connect(self) -> Wire:
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**20))

    async def until_idle(self) -> None:
        """Wait until no lease is held and no connection to the engine is busy."""
        async with asyncio.timeout(5):
            await self.leases.until(lambda: self.leases.num_out == 0)
            await eventually(lambda: num_busy(self.plane) == 0)


@contextlib.asynccontextmanager
async def berth_around(script: Any) -> AsyncIterator[Front]:
    async with upstream(script) as engine:
        leases = StubLeases(one=engine.endpoint)
        plane = DataPlane(leases, ProxyMetrics())

        async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
            await plane.forward(scope, receive, send, InstanceTarget(leases, "one", scope["raw_path"]))

        cache = ResponseCache(gateway, 1024 * 1024, lambda model: model)
        protocols = ProtocolApp(
            cache,
            load_protocols(PLUGINS),
            protocol_of={"base": "alpaca"}.get,
            default_model="demo",
        )
        async with serving(protocols) as port:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                front = Front(port, plane, leases, client)
                yield front
            await front.until_idle()
        plane.close()


@contextlib.asynccontextmanager
async def serving(app: App) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app,
        http=server_protocol(),
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    sock = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[sock]))
    await eventually(lambda: server.started)
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        sock.close()


class Engine:
    """Serves chats and completions, streamed on request; records the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, Any]] = []

    async def __call__(self, wire: Wire) -> None:
        while True:
            head, body = await wire.read_message()
            asked = json.loads(body)
            self.asked.append((head.line.split()[1], asked))
            if asked.get("stream"):
                await wire.send(
                    STREAM_HEAD, *(chunk(event) for event in chat_stream("Hel", "lo")), chunk(b"")
                )
            elif "prompt" in asked:
                answer = {"choices": [{"text": "Hello", "finish_reason": "stop"}]}
                await wire.send(response(json.dumps(answer).encode(), "Content-Type: application/json"))
            else:
                await wire.send(response(chat_answer(), "Content-Type: application/json"))


async def test_plugins_serve_their_routes() -> None:
    engine = Engine()
    async with berth_around(engine) as front:
        for path, asked, answered in [
            ("/generate", {"prompt": "a"}, "Hello"),
            ("/generate", {"prompt": "a", "model": "base"}, "Hello"),
        ]:
            assert (await front.client.post(path, json=asked)).json()["text"] == answered
        got = await front.client.post("/summarize", json={"text": "a"}, headers={"X-Request-Id": "mine"})
        assert got.json() == {"summary": "Hello", "is_whole": True}
        assert got.headers["x-request-id"] == "mine"
        lines = await front.client.post("/summarize", json={"text": "a", "stream": True})
        assert [json.loads(line) for line in lines.text.splitlines()] == [
            {"piece": "Hel"},
            {"piece": "lo"},
            {"is_whole": True},
        ]
    assert [target for target, _ in engine.asked] == [
        b"/v1/chat/completions",
        b"/v1/completions",
        b"/v1/chat/completions",
        b"/v1/chat/completions",
    ]


async def test_cached_responses_reach_protocols_too() -> None:
    engine = Engine()
    async with berth_around(engine) as front:
        for asked in ({"prompt": "a", "temperature": 0}, {"prompt": "a", "temperature": 0, "stream": True}):
            got = [await front.client.post("/generate", json=asked) for _ in range(2)]
            assert [answer.headers["x-berth-cache"] for answer in got] == ["miss", "hit"]
            assert got[0].text == got[1].text
            assert "Hel" in got[0].text
    assert len(engine.asked) == 2


async def test_every_event_is_forwarded_as_it_arrives() -> None:
    has_first_piece = asyncio.Event()

    async def engine(wire: Wire) -> None:
        await wire.read_message()
        first, second, *rest = chat_stream("Hel", "lo")
        await wire.send(STREAM_HEAD, chunk(first + second))
        async with asyncio.timeout(5):
            await has_first_piece.wait()
        await wire.send(chunk(b"".join(rest)), chunk(b""))

    async with (
        berth_around(engine) as front,
        front.client.stream("POST", "/generate", json=STREAMED) as got,
    ):
        lines = got.aiter_lines()
        assert json.loads((await anext(lines)).removeprefix("data: ")) == {"text": "Hel"}
        has_first_piece.set()  # the engine continues only when the client has the first piece
        assert [line async for line in lines][-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("temperature", [0, 1])
async def test_a_broken_stream_gets_an_error_event_and_is_cut(temperature: int) -> None:
    async def engine(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(STREAM_HEAD, chunk(b"".join(chat_stream("Hel")[:2])))

    async with berth_around(engine) as front:
        wire = await front.connect()
        body = json.dumps({**STREAMED, "temperature": temperature}).encode()
        await wire.send(request("/generate", method="POST", body=body))
        await wire.read_head()
        assert await wire.read_chunk() == b'data: {"text":"Hel"}\n\n'
        assert (
            json.loads((await wire.read_chunk()).removeprefix(b"data: "))["error"]["type"] == "upstream_error"
        )
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await wire.read_chunk()
        await wire.close()


async def test_an_engine_that_breaks_off_within_a_response_is_a_502() -> None:
    async def engine(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")

    async with berth_around(engine) as front:
        got = await front.client.post("/generate", json={"prompt": "a"})
        assert (got.status_code, got.json()["error"]["type"]) == (502, "upstream_error")


async def test_a_disconnect_ends_the_engines_work() -> None:
    has_ended = asyncio.Event()

    async def engine(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(STREAM_HEAD, *(chunk(event) for event in chat_stream("Hel")[:2]))
        await wire.wait_closed()
        has_ended.set()

    async with berth_around(engine) as front:
        wire = await front.connect()
        await wire.send(request("/generate", method="POST", body=json.dumps(STREAMED).encode()))
        await wire.read_head()
        await wire.read_chunk()
        wire.reset()
        async with asyncio.timeout(5):
            await has_ended.wait()


async def test_a_client_that_reads_slowly_slows_the_engine() -> None:
    """An endless stream stops: nothing in between buffers it."""
    num_sent = 0
    event = chunk(
        b"data: " + json.dumps({"choices": [{"delta": {"content": "x" * 60_000}}]}).encode() + b"\n\n"
    )

    async def engine(wire: Wire) -> None:
        nonlocal num_sent
        await wire.read_message()
        await wire.send(STREAM_HEAD)
        while True:
            await wire.send(event)
            num_sent += 1

    async with berth_around(engine) as front:
        wire = await front.connect()
        await wire.send(request("/generate", method="POST", body=json.dumps(STREAMED).encode()))
        await wire.read_head()
        seen = -1
        async with asyncio.timeout(20):
            while num_sent != seen or not num_sent:
                seen = num_sent
                await asyncio.sleep(0.3)
        assert num_sent * len(event) < 64 * 1024 * 1024  # what sockets hold, on four sides
        wire.reset()
