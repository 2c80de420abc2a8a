"""What the proxy forwards, byte for byte, and what it must not forward."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.api.upstreams import LOOPS, Head, StubLeases, Wire, berth, request, response, upstream


@pytest.fixture(params=LOOPS, ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Recorder:
    """Responds to every request with `answer` and records it."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers) or [response()]
        self.heads: list[Head] = []
        self.bodies: list[bytes] = []

    async def __call__(self, wire: Wire) -> None:
        while True:
            head, body = await wire.read_message()
            self.heads.append(head)
            self.bodies.append(body)
            await wire.send(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


async def test_a_request_and_its_response_are_forwarded() -> None:
    recorder = Recorder(response(b'{"ok":1}', "Content-Type: application/json", "X-Engine: yes"))
    async with upstream(recorder) as engine, berth(engine) as front:
        head, body = await front.ask(request("/proxy/one/v1/completions", method="POST", body=b'{"a":1}'))
    assert (head.status, body) == (200, b'{"ok":1}')
    assert head.get(b"x-engine") == b"yes"
    assert recorder.heads[0].line == b"POST /v1/completions HTTP/1.1"
    assert recorder.bodies == [b'{"a":1}']


async def test_other_paths_go_to_the_control_plane() -> None:
    async with upstream(Recorder()) as engine, berth(engine) as front:
        for target in ("/", "/proxy", "/instances", "/prox/one/x"):
            assert (await front.ask(request(target)))[1] == b"control"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_any_method_is_forwarded(method: str) -> None:
    recorder = Recorder()
    async with upstream(recorder) as engine, berth(engine) as front:
        assert (await front.ask(request(method=method)))[1] == b"ok"
    assert recorder.heads[0].line.split()[0] == method.encode()


async def test_trap_1_no_cookie_of_one_client_reaches_the_next() -> None:
    recorder = Recorder(response(b"", "Set-Cookie: a=1", "Set-Cookie: b=2"))
    async with upstream(recorder) as engine, berth(engine) as front:
        head, _ = await front.ask(request())
        await front.ask(request())
        await front.ask(request("/proxy/one/x", "Cookie: own=1"))
    assert head.all(b"set-cookie") == [b"a=1", b"b=2"]
    assert [sent.get(b"cookie") for sent in recorder.heads] == [None, None, b"own=1"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/proxy/one", "/"),
        ("/proxy/one/", "/"),
        ("/proxy/one/a%2Fb%3Fc/../d//e;f", "/a%2Fb%3Fc/../d//e;f"),
        ("/proxy/one/x?q=%20+%3D&q=&&k", "/x?q=%20+%3D&q=&&k"),
        ("/proxy/%6Fne/x", "/x"),
        ("/proxy/one//double", "//double"),
    ],
)
async def test_trap_2_path_and_query_are_forwarded_verbatim(target: str, expected: str) -> None:
    recorder = Recorder()
    async with upstream(recorder) as engine, berth(engine) as front:
        await front.ask(request(target))
    assert recorder.heads[0].line.decode() == f"GET {expected} HTTP/1.1"


@pytest.mark.parametrize("status", ["500 Oops", "404 Not Found", "429 Slow Down", "302 Found", "599 Odd"])
async def test_trap_5_the_engines_status_is_passed_on(status: str) -> None:
    recorder = Recorder(response(b'{"error":"x"}', "Location: /elsewhere", status=status))
    async with upstream(recorder) as engine, berth(engine) as front:
        head, body = await front.ask(request())
    assert (head.status, body) == (int(status[:3]), b'{"error":"x"}')
    assert head.get(b"location") == b"/elsewhere"


async def test_trap_8_expect_is_answered_here_and_not_forwarded() -> None:
    recorder = Recorder()
    async with upstream(recorder) as engine, berth(engine) as front:
        wire = await front.connect()
        raw = request("/proxy/one/x", "Expect: 100-continue", method="POST", body=b"hello")
        await wire.send(raw.removesuffix(b"hello"))
        assert (await wire.read_head()).status == 100
        await wire.send(b"hello")
        assert (await wire.read_message())[1] == b"ok"
        await wire.close()
    assert recorder.heads[0].get(b"expect") is None
    assert recorder.bodies == [b"hello"]


async def test_trap_9_headers_are_neither_added_nor_merged_nor_reordered() -> None:
    recorder = Recorder(response(b"", "X-A: 1", "Via: x", "X-A: 2", "Date: then", "Server: engine"))
    async with upstream(recorder) as engine, berth(engine) as front:
        head, _ = await front.ask(request("/proxy/one/x", "X-B: 2", "X-Same: 1", "X-A: 1", "X-Same: 2"))
    names = [name for name, _ in recorder.heads[0].headers]
    added = {b"x-request-id", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
    assert [name for name in names if name not in added] == [
        b"host",
        b"authorization",
        b"x-b",
        b"x-same",
        b"x-a",
        b"x-same",
    ]
    assert recorder.heads[0].all(b"x-same") == [b"1", b"2"]
    assert [pair for pair in head.headers if pair[0] not in (b"content-length", b"x-request-id")] == [
        (b"x-a", b"1"),
        (b"via", b"x"),
        (b"x-a", b"2"),
        (b"date", b"then"),
        (b"server", b"engine"),
    ]


async def test_trap_10_headers_named_by_connection_are_stripped_both_ways() -> None:
    recorder = Recorder(
        response(b"", "Connection: X-Hop, keep-alive", "X-Hop: 1", "Keep-Alive: timeout=5", "X-Y: 1")
    )
    async with upstream(recorder) as engine, berth(engine) as front:
        head, _ = await front.ask(
            request("/proxy/one/x", "X-Secret: 1", "Connection: x-secret", "TE: trailers", "X-Z: 1")
        )
    sent = recorder.heads[0]
    assert (sent.get(b"x-secret"), sent.get(b"te"), sent.get(b"connection"), sent.get(b"x-z")) == (
        None,
        None,
        None,
        b"1",
    )
    assert (head.get(b"x-hop"), head.get(b"keep-alive"), head.get(b"x-y")) == (None, None, b"1")


async def test_trap_11_encoded_bodies_stay_encoded() -> None:
    packed = gzip.compress(b"hello " * 100)
    recorder = Recorder(response(packed, "Content-Encoding: gzip"))
    async with upstream(recorder) as engine, berth(engine) as front:
        head, body = await front.ask(
            request("/proxy/one/x", "Content-Encoding: gzip", method="POST", body=packed)
        )
    assert (head.get(b"content-encoding"), body) == (b"gzip", packed)
    assert recorder.bodies == [packed]
    assert recorder.heads[0].get(b"accept-encoding") is None


async def test_trap_14_requests_share_a_kept_alive_connection() -> None:
    async with upstream(Recorder()) as engine, berth(engine) as front:
        for method in ("GET", "POST", "DELETE", "GET"):
            wire = await front.connect()
            await wire.send(request(method=method))
            assert (await wire.read_head()).status == 200
            await wire.close()
        assert engine.num_connections == 1
        assert front.plane.pools.num_open == 1


async def test_a_connection_that_the_engine_closes_is_not_reused() -> None:
    recorder = Recorder(response(b"bye", "Connection: close"))
    async with upstream(recorder) as engine, berth(engine) as front:
        for _ in range(2):
            head, body = await front.ask(request())
            assert (body, head.get(b"connection")) == (b"bye", None)
        assert engine.num_connections == 2
        assert front.plane.pools.num_open == 0


async def test_an_engine_that_closes_connections_without_saying_so_gets_new_ones() -> None:
    """Of its kind it is known: a request sent on such a connection could not be sent again."""

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b"ok"))
        await wire.read_message()  # never answered: as if it had been closed

    async with upstream(script) as engine:
        engine.endpoint = replace(engine.endpoint, keeps_connections=False)
        async with berth(engine) as front:
            for _ in range(3):
                head, body = await front.ask(request(method="POST", body=b"{}"))
                assert (head.status, body) == (200, b"ok")
                assert front.plane.pools.num_open == 0
        assert engine.num_connections == 3


async def test_host_and_key_are_replaced_by_the_engines() -> None:
    recorder = Recorder()
    async with upstream(recorder, api_key="engine-key") as engine, berth(engine) as front:
        keys = ("Authorization: Bearer clients-own", "X-Api-Key: clients-own", "API-Key: clients-own")
        await front.ask(request("/proxy/one/x", *keys, "Proxy-Authorization: x"))
    sent = recorder.heads[0]
    assert not any(b"clients-own" in value for _, value in sent.headers)
    assert sent.all(b"authorization") == [b"Bearer engine-key"]
    assert sent.all(b"host") == [f"127.0.0.1:{engine.endpoint.port}".encode()]
    assert sent.get(b"proxy-authorization") is None


async def test_forwarded_headers_are_added_to_what_the_client_sent() -> None:
    recorder = Recorder()
    async with upstream(recorder) as engine, berth(engine) as front:
        await front.ask(request())
        await front.ask(
            request(
                "/proxy/one/x",
                "X-Forwarded-For: 1.2.3.4",
                "X-Forwarded-Proto: https",
                "X-Forwarded-Host: a.b",
            )
        )
    plain, behind = recorder.heads
    assert plain.get(b"x-forwarded-for") == b"127.0.0.1"
    assert (plain.get(b"x-forwarded-proto"), plain.get(b"x-forwarded-host")) == (b"http", b"berth.test")
    assert behind.get(b"x-forwarded-for") == b"1.2.3.4, 127.0.0.1"
    assert (behind.get(b"x-forwarded-proto"), behind.get(b"x-forwarded-host")) == (b"https", b"a.b")


@pytest.mark.parametrize("given", ["mine-1", None, "x" * 129, "with space"])
async def test_a_request_id_is_kept_or_generated_sent_and_returned(given: str | None) -> None:
    recorder = Recorder(response(b"", "X-Request-Id: the-engines"))
    async with upstream(recorder) as engine, berth(engine) as front:
        head, _ = await front.ask(request("/proxy/one/x", *([f"X-Request-Id: {given}"] if given else [])))
    sent = recorder.heads[0].all(b"x-request-id")
    assert head.all(b"x-request-id") == sent
    assert len(sent) == 1
    assert (sent == [b"mine-1"]) == (given == "mine-1")
    assert 0 < len(sent[0]) <= 128


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 No\r\nContent-Length: 10\r\nETag: a\r\n\r\n", 304, b""),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
            b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\nX-T: 1\r\n\r\n",
            200,
            b"abc",
        ),
        (b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + response(b"abc"), 200, b"abc"),
        (b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\na", 200, b"a"),
    ],
    ids=["204", "304", "chunked with trailers", "interim", "upgrade offered"],
)
async def test_framings_of_responses(raw: bytes, status: int, body: bytes) -> None:
    async with upstream(Recorder(raw)) as engine, berth(engine) as front:
        for _ in range(2):
            head, got = await front.ask(request())
            assert (head.status, got) == (status, body)
            assert head.get(b"upgrade") is None
            assert head.get(b"link") is None
        assert engine.num_connections == 1


async def test_a_body_ended_by_its_connection() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil ", b"the end")

    async with upstream(script) as engine, berth(engine) as front:
        assert (await front.ask(request()))[1] == b"until the end"


async def test_head_has_the_length_and_no_body() -> None:
    async with (
        upstream(Recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")) as engine,
        berth(engine) as front,
    ):
        wire = await front.connect()
        for _ in range(2):
            await wire.send(request(method="HEAD"))
            assert (await wire.read_head()).get(b"content-length") == b"5"
        await wire.close()
        assert engine.num_connections == 1


async def test_a_chunked_request_stays_chunked() -> None:
    recorder = Recorder()
    async with upstream(recorder) as engine, berth(engine) as front:
        raw = request("/proxy/one/x", "Transfer-Encoding: chunked", method="POST")
        await front.ask(raw + b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n")
    assert recorder.bodies == [b"abcde"]
    assert recorder.heads[0].get(b"content-length") is None


async def test_pipelined_requests_are_answered_in_order() -> None:
    recorder = Recorder(response(b"1"), response(b"2"), response(b"3"))
    async with upstream(recorder) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(request("/proxy/one/a") + request("/proxy/one/b") + request("/proxy/one/c"))
        assert [(await wire.read_message())[1] for _ in range(3)] == [b"1", b"2", b"3"]
        await wire.close()
    assert [head.line.split()[1] for head in recorder.heads] == [b"/a", b"/b", b"/c"]


async def test_event_streams_are_marked_unbuffered_and_forwarded_event_by_event() -> None:
    ready = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            await ready.wait()
            ready.clear()
            await wire.send(b"9\r\ndata: 1\n\n\r\n")
        await wire.send(b"0\r\n\r\n")

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(request())
        head = await wire.read_head()  # arrives before any event has been sent
        assert head.get(b"x-accel-buffering") == b"no"
        for _ in range(3):
            ready.set()
            assert await wire.read_chunk() == b"data: 1\n\n"
        assert await wire.read_chunk() == b""
        await wire.close()


async def test_an_unknown_instance_is_404_in_openais_envelope() -> None:
    async with berth(StubLeases()) as front:
        head, body = await front.ask(request("/proxy/none/x", "X-Request-Id: r1"))
    assert head.status == 404
    assert head.get(b"x-request-id") == b"r1"
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "instance_not_found"


async def test_metrics_count_requests_bytes_and_statuses() -> None:
    async with upstream(Recorder(response(b"four"))) as engine, berth(engine) as front:
        await front.ask(request(method="POST", body=b"123"))
        await front.ask(request(method="PROPFIND"))
        await front.ask(request("/proxy/none/x"))
        registry = CollectorRegistry()
        registry.register(front.metrics)
        label = {"instance": "one", "model": "stub-model"}
        value = registry.get_sample_value
        assert value("berth_requests_total", {**label, "method": "POST", "code": "200"}) == 1
        assert (
            value("berth_requests_total", {"instance": "", "model": "", "method": "GET", "code": "404"}) == 1
        )
        assert value("berth_requests_total", {**label, "method": "other", "code": "200"}) == 1
        assert value("berth_request_bytes_total", label) == 3
        assert value("berth_response_bytes_total", label) == 8
        assert value("berth_request_seconds_count", label) == value(
            "berth_time_to_first_byte_seconds_count", label
        )
        assert value("berth_requests_in_flight", label) == 0
        front.metrics.forget("one")
        assert value("berth_request_bytes_total", label) is None


async def test_a_refused_connection_is_a_502_with_the_reason() -> None:
    async with upstream(Recorder()) as engine:
        pass
    async with berth(engine) as front:
        head, body = await front.ask(request())
    assert head.status == 502
    assert json.loads(body)["error"]["code"] == "engine_unreachable"
    assert str(engine.endpoint.port) in json.loads(body)["error"]["message"]
