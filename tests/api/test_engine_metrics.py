"""Fetching engines' metrics: a bad engine costs at most the time-out and affects no other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from api.control.scrape import EngineTarget, ScrapeFailure, scrape_engines
from instance_manager.types import Endpoint

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
GOOD = HEAD + b"Content-Length: 4\r\n\r\nx 1\n"


def target(port: int, name: str = "one") -> EngineTarget:
    return EngineTarget(name, "m", Endpoint("127.0.0.1", port, "the-key", 1))


@asynccontextmanager
async def engine(*pieces: bytes, drip_s: float = 0.0, asked: list[bytes] | None = None) -> AsyncIterator[int]:
    """A server that responds with `pieces`, `drip_s` apart; yields its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if asked is not None:
                asked.append(head)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(drip_s)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_the_engine_s_own_key_is_sent() -> None:
    asked: list[bytes] = []
    async with engine(GOOD, asked=asked) as port:
        (scrape,) = await scrape_engines([target(port)])
    assert (scrape.text, scrape.failure) == ("x 1\n", None)
    assert asked[0].startswith(b"GET /metrics HTTP/1.1\r\n")
    assert b"authorization: bearer the-key" in asked[0].lower()


@pytest.mark.parametrize(
    ("pieces", "failure"),
    [
        ((b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",), ScrapeFailure.STATUS),
        ((b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",), ScrapeFailure.STATUS),
        ((b"garbage\r\n\r\n",), ScrapeFailure.UNREACHABLE),
        ((HEAD + b"Content-Length: 9\r\n\r\nx 1\n",), ScrapeFailure.UNREACHABLE),
        ((HEAD + b"Content-Length: 9000\r\n\r\n" + b"x" * 9000,), ScrapeFailure.TOO_LARGE),
        ((), ScrapeFailure.UNREACHABLE),
    ],
)
async def test_failures_are_distinguished(pieces: tuple[bytes, ...], failure: ScrapeFailure) -> None:
    async with engine(*pieces) as bad, engine(GOOD) as good:
        scrapes = await scrape_engines([target(bad), target(good, "two")], timeout_s=30.0, max_bytes=8000)
    assert [scrape.failure for scrape in scrapes] == [failure, None]


async def test_an_unreachable_engine() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (scrape,) = await scrape_engines([target(probe.getsockname()[1])], timeout_s=30.0)
    assert scrape.failure is ScrapeFailure.UNREACHABLE


async def test_the_time_out_covers_the_whole_response_and_requests_are_concurrent() -> None:
    drip = [HEAD + b"\r\n", *[b"x 1\n"] * 600]
    async with engine(*drip, drip_s=0.05) as slow:
        targets = [target(slow, f"i{number}") for number in range(8)]
        async with asyncio.timeout(20):  # one after the other would take 8 times 0.5 s, a drip 30 s each
            scrapes = await scrape_engines(targets, timeout_s=0.5)
    assert {scrape.failure for scrape in scrapes} == {ScrapeFailure.TIMEOUT}
    assert max(scrape.seconds for scrape in scrapes) < 0.5 * 8
