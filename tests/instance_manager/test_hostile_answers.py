"""Engines whose responses to Berth's own requests are endless, slow, compressed or redirects."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest

from instance_manager.backends import BACKENDS
from instance_manager.backends.vllm import VllmSleep
from instance_manager.config import LivenessRules
from instance_manager.lifecycle.bounded_fetch import ResponseTooLong, engine_client, fetch
from instance_manager.lifecycle.health import LastProbe, Probe, WrongEngine, reported_names, wait_until_ready
from instance_manager.lifecycle.liveness import LivenessFailed, ProbeTarget, watch_liveness
from instance_manager.lifecycle.sleep_client import SleepClient, SleepRefused
from instance_manager.process.process_group import port_owner
from tests.api.upstreams import Wire, response, upstream

OK = b"HTTP/1.1 200 OK\r\n"
MIB = 1 << 20
HUGE = 700 * MIB
Answering = Callable[[Wire], Awaitable[None]]


async def seven_hundred_mib(wire: Wire) -> None:
    await wire.send(OK + b"Content-Length: %d\r\n\r\n" % HUGE)
    for _ in range(HUGE // MIB):
        await wire.send(b"x" * MIB)


async def endless(wire: Wire) -> None:
    await wire.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        await wire.send(b"10000\r\n", b"x" * 65536, b"\r\n")


async def until_it_closes(wire: Wire) -> None:
    await wire.send(OK + b"\r\n")
    while True:
        await wire.send(b"x" * 65536)


async def gzip_bomb(wire: Wire) -> None:
    compressed = gzip.compress(b"\0" * (64 * MIB))
    await wire.send(response(compressed, "Content-Encoding: gzip"))


async def drip(wire: Wire) -> None:
    await wire.send(OK + b"Content-Length: 100000\r\n\r\n")
    while True:
        await wire.send(b"x")
        await asyncio.sleep(0.05)


async def endless_head(wire: Wire) -> None:
    await wire.send(OK)
    while True:
        await wire.send(b"X-More: and more\r\n" * 1000)


async def interim_for_ever(wire: Wire) -> None:
    while True:
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 100)
        await asyncio.sleep(0.001)


async def wrong_length(wire: Wire) -> None:
    await wire.send(OK + b"Content-Length: 1000\r\n\r\nshort")


UNBOUNDED: list[Answering] = [seven_hundred_mib, endless, until_it_closes]
BAD: list[Answering] = [*UNBOUNDED, drip, endless_head, interim_for_ever, wrong_length]


@asynccontextmanager
async def engine(answers: dict[bytes, Answering | bytes]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Yields its URL and the requested paths; other paths than those in `answers` return an empty 200."""
    asked: list[bytes] = []

    async def serve(wire: Wire) -> None:
        path = (await wire.read_head()).line.split()[1]
        asked.append(path)
        answer = answers.get(path, response(b""))
        if isinstance(answer, bytes):
            await wire.send(answer)
        else:
            await answer(wire)

    async with upstream(serve) as server:
        yield f"http://127.0.0.1:{server.endpoint.port}", asked


def probe(url: str, model: str | None = "m") -> Probe:
    return Probe(
        "127.0.0.1",
        int(url.rpartition(":")[2]),
        partial(port_owner, os.getpid()),
        "key",
        "/health",
        model,
        "VLLM_API_KEY",
    )


async def longest_gap_during(work: Awaitable[object]) -> float:
    """Longest delay, in seconds, of a task that runs every 5 ms."""
    gap, last = 0.0, time.monotonic()
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0.005)
        now = time.monotonic()
        gap, last = max(gap, now - last), now
    task.result()
    return gap


@pytest.mark.parametrize("answer", BAD, ids=lambda answer: answer.__name__)
async def test_responses_are_bounded_in_size_and_time(answer: Answering) -> None:
    async def ask() -> None:
        async with engine_client(1.0) as client:
            with pytest.raises(httpx.HTTPError) as raised:
                await fetch(client, "GET", url + "/x", headers={}, timeout_s=0.5, max_bytes=256 * 1024)
            assert isinstance(raised.value, ResponseTooLong) is (answer in UNBOUNDED)

    async with engine({b"/x": answer}) as (url, _), engine_client(5.0) as client:
        await fetch(client, "GET", url + "/", headers={}, timeout_s=5, max_bytes=MIB)  # late imports
        began = time.monotonic()
        tracemalloc.start()
        try:
            gap = await longest_gap_during(ask())
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert time.monotonic() - began < 3
        assert most < 8 * MIB
        assert gap < 0.25


async def test_nothing_is_decompressed_and_no_redirect_or_cookie_is_kept() -> None:
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /other\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
    async with engine({b"/bomb": gzip_bomb, b"/302": redirect}) as (url, asked), engine_client(1.0) as client:
        compressed = await fetch(client, "GET", url + "/bomb", headers={}, timeout_s=5, max_bytes=MIB)
        assert len(compressed.body) < MIB
        found = await fetch(client, "GET", url + "/302", headers={}, timeout_s=1, max_bytes=MIB)
        assert (found.status, found.is_ok) == (302, False)
        assert asked == [b"/bomb", b"/302"]
        assert not client.cookies


@pytest.mark.parametrize("path", [b"/health", b"/v1/models"])
@pytest.mark.parametrize("answer", UNBOUNDED, ids=lambda answer: answer.__name__)
async def test_an_engine_whose_probe_responses_are_too_long_fails_to_start(
    path: bytes, answer: Answering
) -> None:
    async with engine({path: answer}) as (url, _), engine_client(1.0) as client:
        with pytest.raises(WrongEngine, match=f"{path.decode()}: the response exceeds"):
            await wait_until_ready(client, probe(url), LastProbe())


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":' + b"[" * 100_000,
        b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"data": {"id": "m"}}',
        b'{"data": ["m"]}',
        b'{"data": [[]]}',
        b'{"data": 5}',
        b"[" * 100_000,
        b"null",
        b"",
        b"\xff\xfe",
        gzip.compress(b'{"data": [{"id": "m"}]}'),
    ],
    ids=range(11),
)
async def test_an_invalid_list_of_models_fails_the_start(body: bytes) -> None:
    async with engine({b"/v1/models": response(body)}) as (url, _), engine_client(1.0) as client:
        with pytest.raises(WrongEngine, match="does not return a list of models"):
            await wait_until_ready(client, probe(url), LastProbe())
        assert await reported_names(client, probe(url)) == []


async def test_many_and_long_model_names_are_abbreviated() -> None:
    listed = [{"id": "x" * 1000}, {"id": "y" * 5000}, *({"id": f"m{number}"} for number in range(9000))]
    body = json.dumps({"data": listed}).encode()
    async with engine({b"/v1/models": response(body)}) as (url, _), engine_client(1.0) as client:
        with pytest.raises(WrongEngine) as raised:
            await wait_until_ready(client, probe(url), LastProbe())
    assert "and 8996 more" in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (seven_hundred_mib, "the response exceeds 64 KiB"),
        (drip, "did not answer within 0.2 s"),
        (b"HTTP/1.1 302 Found\r\nLocation: /v1/models\r\nContent-Length: 0\r\n\r\n", "answered 302"),
    ],
    ids=["large", "drip", "redirect"],
)
async def test_a_running_engine_with_such_health_responses_is_unhealthy(
    answer: Answering | bytes, message: str
) -> None:
    rules = LivenessRules(interval_s=0.01, stall_s=0, timeout_s=0.2)
    async with engine({b"/health": answer}) as (url, asked), engine_client(1.0) as client:
        with pytest.raises(LivenessFailed, match=message):
            await watch_liveness(
                client, ProbeTarget(url, "key", "/health", BACKENDS["vllm"]), rules, time.monotonic
            )
        assert asked == [b"/health"] * 3


@pytest.mark.parametrize(
    "page",
    [
        b"vllm:num_requests_running nonsense\n",
        b"vllm:num_requests_running{a=\"b\"} 0x10\n",
        b"vllm:num_requests_running " + b"1" * 500_000,
        b"\nvllm:num_requests_running{" * 30_000,
        b"vllm:num_requests_running NaN\nvllm:prompt_tokens_total " + b"9" * 500_000,
    ],
    ids=["word", "hex", "long", "unclosed", "nan"],
)  # fmt: skip
async def test_invalid_metrics_are_ignored(page: bytes) -> None:
    asked_twice = asyncio.Event()

    async def metrics(wire: Wire) -> None:
        await wire.send(response(page))
        if asked.count(b"/metrics") > 1:
            asked_twice.set()

    rules = LivenessRules(interval_s=0.01, stall_s=30, timeout_s=5)
    async with engine({b"/metrics": metrics}) as (url, asked), engine_client(5.0) as client:
        target = ProbeTarget(url, "key", "/health", BACKENDS["vllm"])
        watching = asyncio.create_task(watch_liveness(client, target, rules, time.monotonic))
        async with asyncio.timeout(5):
            assert await longest_gap_during(asked_twice.wait()) < 0.25
        assert not watching.done()
        watching.cancel()


async def test_an_engine_whose_sleep_responses_are_endless_refuses_to_sleep() -> None:
    answers: dict[bytes, Answering | bytes] = {b"/sleep?level=1": endless, b"/is_sleeping": endless}
    async with engine(answers) as (url, _), engine_client(5.0) as client:
        sleep_client = SleepClient(client, url, "key", VllmSleep(), "m")
        with pytest.raises(SleepRefused, match="exceeds"):
            await sleep_client.sleep(1)
        with pytest.raises(SleepRefused, match="exceeds"):
            await sleep_client.is_asleep()
