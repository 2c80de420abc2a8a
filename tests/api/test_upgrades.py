"""Upgrade offers, and invalid WebSocket handshakes. With raw sockets."""

from __future__ import annotations

import asyncio

import pytest

from api.server.limits import ConnectionLimits
from tests.api.test_limits import GET, serving

POST = b"POST / HTTP/1.1\r\nhost: x\r\n"
OFFERS = [
    # curl --http2
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAA\r\n",
    b"connection: upgrade\r\nupgrade: TLS/1.0\r\n",
    b"connection: upgrade\r\nupgrade: foo\r\n",
    b"connection: upgrade\r\nupgrade: foo, websocket, h2c\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\nupgrade: foo\r\n",
    b"upgrade: h2c\r\n",
]
LENGTH = b"content-length: 5\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
WEBSOCKET = (
    b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("is_split", [False, True], ids=["at once", "in pieces"])
async def test_a_declined_upgrade_keeps_the_body(offer: bytes, is_split: bool) -> None:
    async with serving(ConnectionLimits()) as served:
        client = await served.connect()
        for framed, body in [
            (LENGTH, b"hello"),
            (CHUNKED, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
        ]:
            client.write(POST + offer + framed)
            for piece in [body[:1], body[1:4], body[4:]] if is_split else [body]:
                await client.writer.drain()
                await asyncio.sleep(0.01 if is_split else 0)
                client.write(piece)
            assert await client.answer() == (200, b"5")
        assert await client.ask(GET + offer + b"\r\n") == (200, b"0"), "the same connection"
        client.close()


async def test_data_after_an_offer_is_another_request() -> None:
    async with serving(ConnectionLimits()) as served:
        client = await served.connect()
        several = POST + OFFERS[0] + LENGTH + b"hello" + GET + OFFERS[1] + b"\r\n" + POST + LENGTH + b"hello"
        client.write(several * 20)
        for _ in range(20):
            assert [await client.answer() for _ in range(3)] == [(200, b"5"), (200, b"0"), (200, b"5")]
        client.close()


@pytest.mark.parametrize(
    "framed",
    [
        b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_an_offer_with_an_ambiguous_length_is_refused(framed: bytes) -> None:
    async with serving(ConnectionLimits()) as served:
        client = await served.connect()
        client.write(POST + OFFERS[0] + framed + GET + b"\r\n")
        assert await client.answer() == (400, "bad_http")
        assert await client.is_closed()
        assert "http.request" not in served.app.ended
        client.close()


async def test_an_offer_with_a_too_long_body_is_refused() -> None:
    async with serving(ConnectionLimits(max_body_bytes=10)) as served:
        client = await served.connect()
        client.write(POST + OFFERS[0] + CHUNKED + b"b\r\nhello world\r\n0\r\n\r\n")
        assert await client.answer() == (413, "body_too_large")
        client.close()


NO_HANDSHAKES = [
    b"x: " + b"x" * 9000 + b"\r\n\r\n",
    b"content-length: 5\r\n\r\nhello",
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"x: \x01\r\n\r\n",
]


@pytest.mark.parametrize("rest", NO_HANDSHAKES)
async def test_an_invalid_handshake_is_refused_and_closed(rest: bytes) -> None:
    async with serving(ConnectionLimits()) as served:
        client = await served.connect()
        status, code = await client.ask(GET + WEBSOCKET + rest)
        assert (status, code in ("bad_handshake", "bad_http")) == (400, True)
        assert await client.is_closed()
        client.close()


async def test_a_long_target_and_a_fragment_are_invalid_handshakes() -> None:
    async with serving(ConnectionLimits()) as served:
        for target in (b"/" + b"x" * 9000, b"/x#y"):
            client = await served.connect()
            head = b"GET " + target + b" HTTP/1.1\r\nhost: x\r\n" + WEBSOCKET + b"\r\n"
            assert await client.ask(head) == (400, "bad_handshake")
            assert await client.is_closed()
            client.close()


async def test_a_handshake_after_an_unanswered_request_ends_both() -> None:
    async with serving(ConnectionLimits()) as served:
        client = await served.connect()
        client.write(GET.replace(b"/", b"/wait", 1) + b"\r\n" + GET + WEBSOCKET + b"\r\n")
        assert await client.is_closed()
        client.close()


@pytest.mark.parametrize(
    "unanswered",
    [
        *(GET + WEBSOCKET + rest for rest in NO_HANDSHAKES[:2]),
        GET + WEBSOCKET[:30],
        GET[:10],
        b"",
    ],
)
async def test_three_hundred_incomplete_handshakes_do_not_block_the_server(unanswered: bytes) -> None:
    async with serving(ConnectionLimits(max_connections=20)) as served:
        clients = [await served.connect() for _ in range(300)]
        for client in clients:
            client.write(unanswered)
        last = await served.connect()
        assert await last.ask(GET + b"\r\n") == (200, b"0")
        for client in (*clients, last):
            client.close()
