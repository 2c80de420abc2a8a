"""HTTP/1.0 clients: no chunks, and the connection is kept only if both sides agree."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.upstreams import Head, Wire, berth, response, upstream
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

KEEP = "Connection: keep-alive"


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"use_uvloop": True})


def old(target: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.0", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def until_closed(wire: Wire) -> tuple[Head, bytes]:
    """The response for a client that reads until the connection ends."""
    head = await wire.read_head()
    body = await wire.reader.read()
    await wire.close()
    return head, body


EVENTS = [b"data: 1\n\n", b"data: 22\n\n", b"data: [DONE]\n\n"]


async def streaming(wire: Wire) -> None:
    """An engine that sends events with pauses or, on request, a response in one piece."""
    while True:
        head, _ = await wire.read_message()
        if b"whole" in head.line:
            await wire.send(response(b"whole"))
            continue
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for event in EVENTS:
            await wire.send(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(0.01)
        if b"cut" in head.line:
            return
        await wire.send(b"0\r\n\r\n")


@pytest.mark.parametrize("more", [(), (KEEP,)])
async def test_a_forwarded_stream_has_no_chunks_and_ends_with_its_connection(more: tuple[str, ...]) -> None:
    async with upstream(streaming) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(old("/proxy/one/x", *more, method="POST", body=b"{}"))
        head, body = await until_closed(wire)
    assert head.get(b"transfer-encoding") is None
    assert head.get(b"content-length") is None
    assert head.get(b"connection") == b"close"
    assert body == b"".join(EVENTS)


async def test_events_arrive_as_they_are_sent() -> None:
    may_continue = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await wire.send(b"9\r\ndata: 1\n\n\r\n")
        await may_continue.wait()
        await wire.send(b"0\r\n\r\n")

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(old("/proxy/one/x"))
        await wire.read_head()
        assert await wire.reader.readexactly(9) == b"data: 1\n\n"
        may_continue.set()
        assert await wire.reader.read() == b""
        await wire.close()


async def test_a_broken_stream_ends_with_an_error_event() -> None:
    async with upstream(streaming) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(old("/proxy/one/cut"))
        _, body = await until_closed(wire)
    assert b"engine_disconnected" in body.removeprefix(b"".join(EVENTS))


@pytest.mark.parametrize(
    ("asked", "stays"),
    [
        ((), False),
        ((KEEP,), True),
        (("Connection: Keep-Alive",), True),
        (("Connection: close",), False),
        (("Connection: close, keep-alive",), False),
        (("Connection: x", KEEP), True),
    ],
)
async def test_the_connection_is_kept_on_request(asked: tuple[str, ...], stays: bool) -> None:
    async with upstream(streaming) as engine, berth(engine) as front:
        for target in ("/proxy/one/whole", "/proxy/none/x"):
            wire = await front.connect()
            for _ in range(3 if stays else 1):
                await wire.send(old(target, *asked))
                head, body = await wire.read_message()
                assert body
                assert head.get(b"connection") == (b"keep-alive" if stays else b"close")
            if not stays:
                assert await wire.reader.read() == b""
            await wire.close()


async def test_http_1_1_is_unaffected_after_and_before_it() -> None:
    async with upstream(streaming) as engine, berth(engine) as front:
        wire = await front.connect()
        new = b"GET /proxy/one/%b HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(2):
            await wire.send(new % b"whole")
            head, _ = await wire.read_message()
            assert head.get(b"connection") is None
            await wire.send(old("/proxy/one/whole", KEEP))
            assert (await wire.read_head()).get(b"connection") == b"keep-alive"
            await wire.reader.readexactly(len(b"whole"))
        await wire.send(new % b"x")
        head, body = await wire.read_message()
        assert (head.get(b"transfer-encoding"), body) == (b"chunked", b"".join(EVENTS))
        await wire.close()


async def test_consecutive_requests_are_answered_in_order() -> None:
    async with upstream(streaming) as engine, berth(engine) as front:
        wire = await front.connect()
        whole = old("/proxy/one/whole", KEEP)
        await wire.send(whole + whole + old("/proxy/one/x", KEEP))
        for _ in range(2):
            assert (await wire.read_message())[1] == b"whole"
        assert (await until_closed(wire))[1] == b"".join(EVENTS)


async def test_no_interim_response_is_sent() -> None:
    async with upstream(streaming) as engine, berth(engine) as front:
        wire = await front.connect()
        raw = old("/proxy/one/whole", "Expect: 100-continue", method="POST", body=b"hello")
        await wire.send(raw[:-5])
        await asyncio.sleep(0.02)
        await wire.send(raw[-5:])
        assert (await wire.read_head()).status == 200
        await wire.close()


async def test_head_has_no_body_and_its_connection_may_be_kept() -> None:
    async def script(wire: Wire) -> None:
        for _ in range(2):
            await wire.read_message()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        for _ in range(2):
            await wire.send(old("/proxy/one/x", KEEP, method="HEAD"))
            head = await wire.read_head()
            assert (head.get(b"connection"), head.get(b"transfer-encoding")) == (b"keep-alive", None)
        await wire.close()


# The whole of Berth.


@pytest.fixture(scope="module")
def whole_berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    with running_berth(tmp_path_factory.mktemp("old")) as berth:
        with httpx.Client(base_url=berth.url, trust_env=False, timeout=60) as client:
            spec = {"name": "a", "model_name": "a", "engine": "command", "command": command()}
            client.post("/instances?wait=60", json=spec).raise_for_status()
        yield berth


async def ask(berth: BerthProcess, raw: bytes, until: bytes = b"") -> tuple[Head, bytes]:
    """All data until the connection ends, or `until` this has arrived."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", berth.port))
    await wire.send(raw)
    head = await wire.read_head()
    body = await (wire.reader.readuntil(until) if until else wire.reader.read())
    await wire.close()
    assert head.get(b"transfer-encoding") is None
    return head, body


async def test_control_routes_support_it(whole_berth: BerthProcess) -> None:
    for path in ("/health", "/instances", "/v1/models", "/docs", "/nothing"):
        head, body = await ask(whole_berth, old(path))
        assert int(head.get(b"content-length") or 0) == len(body) > 0
        assert head.get(b"connection") == b"close"


async def test_streams_of_control_routes_are_unchunked(whole_berth: BerthProcess) -> None:
    for path in ("/events", "/instances/a/logs?follow=true"):
        _, body = await ask(whole_berth, old(path, "Last-Event-ID: 0"), until=b"\n\n")
        assert body.startswith((b"id: ", b"event: ", b"data: ")), "no chunk's size"


async def test_a_stream_by_name_is_unchunked(whole_berth: BerthProcess) -> None:
    body = b'{"model": "a", "prompt": "x", "max_tokens": 3, "stream": true}'
    head, answer = await ask(whole_berth, old("/v1/completions", method="POST", body=body))
    assert head.get(b"connection") == b"close"
    assert answer.startswith(b"data: {") and answer.endswith(b"data: [DONE]\n\n")
