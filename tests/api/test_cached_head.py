"""Requests with a cached head: read as the parser would read them, and served like any other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from httptools import HttpRequestParser
from hypothesis import example, given
from hypothesis import strategies as st

from api.access.key_store import Keys, KeyStore
from api.access.keys import Access, ApiKey
from api.auth import AccessControl
from api.http.asgi import RawHeaders, Receive, Scope, Send
from api.http.head_cache import ROUTE_CACHE, RouteCache, cached_head
from api.http.response_channel import Handler, ResponseChannel, ResumeAsTask
from api.server.protocol import HttpProtocol
from tests.api.upstreams import Head, Wire, berth, eventually, request, response, upstream


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The data given to the parser."""
    pieces: list[bytes] = []
    original = HttpProtocol._parse

    def recording(self: HttpProtocol, data: bytes) -> None:
        pieces.append(data)
        original(self, data)

    monkeypatch.setattr(HttpProtocol, "_parse", recording)
    return pieces


async def echo(wire: Wire) -> None:
    while True:
        head, body = await wire.read_message()
        if b"slow" in head.line or body.startswith(b"slow"):
            await asyncio.sleep(0.1)
        if body.startswith(b"parts"):
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await asyncio.sleep(0.02)
            await wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            await wire.send(response(b"%b of %b" % (body or b"nothing", head.get(b"x-request-id") or b"?")))


def post(body: bytes, *headers: str, target: str = "/proxy/one/x") -> bytes:
    return request(target, *headers, method="POST", body=body)


async def ask(wire: Wire, raw: bytes) -> tuple[Head, bytes]:
    await wire.send(raw)
    return await wire.read_message()


async def test_an_equal_head_is_parsed_once(parsed: list[bytes]) -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        wire = await front.connect()
        bodies = [b"a", b"bb", b"x" * 5000, b"a", b"slow", b"parts", b"z"]
        ids = set()
        for body in bodies:
            head, answer = await ask(wire, post(body))
            echoed, _, request_id = answer.partition(b" of ") if b" of " in answer else (answer, b"", b"")
            assert (echoed, head.status) == (body, 200)
            assert request_id in (b"", head.get(b"x-request-id"))
            ids.add(head.get(b"x-request-id"))
        assert len(parsed) == 1
        assert len(ids) == len(bodies)
        assert engine.num_connections == 1
        metrics = front.metrics.of("one", "")
        assert metrics.requests == {("POST", 200): len(bodies)}
        assert metrics.bytes_in == sum(map(len, bodies))
        await wire.close()


async def test_a_request_without_a_body(parsed: list[bytes]) -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        wire = await front.connect()
        for _ in range(3):
            _, answer = await ask(wire, request())
            assert answer.startswith(b"nothing of ")
        assert len(parsed) == 1
        await wire.close()


async def test_other_paths_are_served_by_asgi(parsed: list[bytes]) -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        wire = await front.connect()
        for body in (b"1", b"22", b"333"):
            assert (await ask(wire, post(body, target="/elsewhere")))[1] == b"control"
        assert len(parsed) == 1
        await wire.close()


@pytest.mark.parametrize(
    "other",
    [
        post(b"hello", "X: 1"),
        post(b"hello", target="/proxy/one/y"),
        post(b"hello", "Connection: close"),
        request(method="PUT", body=b"hello"),
        post(b"hello", "x-request-id: mine"),
    ],
)
async def test_another_head_is_parsed(other: bytes, parsed: list[bytes]) -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        wire = await front.connect()
        await ask(wire, post(b"hello"))
        head, answer = await ask(wire, other)
        assert answer.startswith(b"hello of ")
        assert parsed[1:] == [other]
        if b"mine" in other:
            assert head.get(b"x-request-id") == b"mine"
            assert (await ask(wire, other))[0].get(b"x-request-id") == b"mine"
        await wire.close()


async def test_heads_that_never_repeat_are_no_longer_cached(
    parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = 0

    def counting(data: bytes, headers: RawHeaders) -> Any:
        nonlocal learnt
        learnt += 1
        return cached_head(data, headers)

    monkeypatch.setattr("api.server.fast_path.cached_head", counting)
    async with upstream(echo) as engine, berth(engine) as front:
        wire = await front.connect()
        for number in range(20):
            await ask(wire, post(b"hello", f"X: {number}"))
        assert (len(parsed), learnt) == (20, 8)
        await wire.close()


async def test_a_body_that_arrives_later_is_awaited(parsed: list[bytes]) -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        wire = await front.connect()
        await ask(wire, post(b"hello"))
        raw = post(b"hello")
        await wire.send(raw[:-5])
        await eventually(lambda: len(parsed) == 2)
        await wire.send(raw[-5:])
        assert (await wire.read_message())[1].startswith(b"hello of ")
        assert (await ask(wire, post(b"again")))[1].startswith(b"again of ")
        assert len(parsed) == 3
        await wire.close()


async def test_pipelined_requests_keep_their_order(parsed: list[bytes]) -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        wire = await front.connect()
        await ask(wire, post(b"hello"))
        await wire.send(post(b"slow 1"))
        await eventually(lambda: front.leases.num_out == 1)
        await wire.send(post(b"2"), post(b"parts 3"))
        answers = [(await wire.read_message())[1].partition(b" of ")[0] for _ in range(3)]
        assert answers == [b"slow 1", b"2", b"parts 3"]
        await wire.send(post(b"4") + post(b"5"))
        answers = [(await wire.read_message())[1].partition(b" of ")[0] for _ in range(2)]
        assert answers == [b"4", b"5"]
        await wire.close()


async def test_a_disconnect_is_noticed() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b"ok"))
        await wire.read_message()
        await wire.wait_closed()
        closed.set()

    closed = asyncio.Event()
    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await ask(wire, post(b"hello"))
        await wire.send(post(b"hello"))
        await eventually(lambda: front.leases.num_out == 1)
        await wire.close()
        async with asyncio.timeout(0.25):
            await closed.wait()
        await eventually(lambda: front.metrics.of("one", "").requests.get(("POST", 499)) == 1)


async def test_an_engine_that_breaks_off_is_reported() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b"ok"))
        await wire.read_message()

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await ask(wire, post(b"hello"))
        head, body = await ask(wire, post(b"hello"))
        assert (head.status, b"engine_disconnected" in body) == (502, True)
        await wire.close()


async def test_a_shutdown_lets_the_request_finish_and_closes() -> None:
    async with upstream(echo) as engine, berth(engine) as front:
        wire = await front.connect()
        await ask(wire, post(b"hello"))
        await wire.send(post(b"slow"))
        await eventually(lambda: front.leases.num_out == 1)
        front.server.should_exit = True
        head, body = await wire.read_message()
        assert (head.status, body[:4]) == (200, b"slow")
        assert head.get(b"connection") == b"close"
        await wire.wait_closed()
        await wire.close()


async def test_an_idle_connection_is_closed_on_time() -> None:
    """The timer of the first request is the only one: it must not cut off later requests."""
    async with upstream(echo) as engine, berth(engine, keep_alive_s=1) as front:
        loop = asyncio.get_running_loop()
        wire = await front.connect()
        begun = loop.time()
        await ask(wire, post(b"hello"))
        await asyncio.sleep(0.7)
        await ask(wire, post(b"hello"))
        asked = loop.time()
        async with asyncio.timeout(5):
            await wire.wait_closed()
        assert loop.time() - begun > 1.5
        assert loop.time() - asked > 0.95
        await wire.close()


# Access: results cached with a head never apply to another caller.


class Passed:
    """An application that counts the requests it receives."""

    def __init__(self) -> None:
        self.num = 0

    def route(self, _: Scope) -> Handler:
        return Handler(unused, self.begin)

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        self.num += 1
        return True


async def unused(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError


def scope_of(route_cache: RouteCache, key: bytes) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "client": ("192.0.2.1", 1),
        "headers": [(b"authorization", b"Bearer " + key)],
        ROUTE_CACHE: route_cache,
    }


def test_a_key_in_another_header_is_cached_with_its_head() -> None:
    app = Passed()
    access = AccessControl(app, Keys(inference=("right",)))
    memos = {b"right": RouteCache(), b"wrong": RouteCache()}
    for _ in range(3):
        for key, route_cache in memos.items():
            scope = scope_of(route_cache, b"unused")
            scope["headers"] += [(b"x-api-key", key)]
            assert begin(access, scope) is (key == b"right")
    assert app.num == 3


def begin(access: AccessControl, scope: Scope) -> bool:
    return access.begin(scope, b"", None, None)  # type: ignore[arg-type]


def test_a_cached_caller_is_permitted_again_and_an_unknown_one_is_not() -> None:
    app = Passed()
    access = AccessControl(app, Keys(inference=("right",)))
    right, wrong = RouteCache(), RouteCache()
    for _ in range(3):
        assert begin(access, scope_of(right, b"right"))
        assert not begin(access, scope_of(wrong, b"wrong"))
    assert app.num == 3
    assert right.handler is not None and right.handler.holds()
    assert wrong.handler is not None and not wrong.handler.holds()


def test_a_rate_limit_applies_to_a_cached_head() -> None:
    app = Passed()
    listed = ApiKey("right", Access.INFERENCE, "slow", rate_per_s=0.001, burst=2)
    access = AccessControl(app, Keys(listed=(listed,)))
    route_cache = RouteCache()
    assert [begin(access, scope_of(route_cache, b"right")) for _ in range(4)] == [True, True, False, False]


def test_a_withdrawn_key_has_no_cached_access() -> None:
    app = Passed()
    keys = KeyStore(Keys(inference=("right",)), read=lambda: Keys(inference=("other",)))
    access = AccessControl(app, keys)
    route_cache = RouteCache()
    assert begin(access, scope_of(route_cache, b"right"))
    keys.reload()
    assert not begin(access, scope_of(route_cache, b"right"))


# Recognition, compared with the parser itself.


class Read:
    """The request that llhttp parses from one piece of data."""

    def __init__(self, data: bytes) -> None:
        self.messages: list[tuple[RawHeaders, bytes]] = []
        self.is_whole = False
        self._headers: RawHeaders = []
        self._body = b""
        HttpRequestParser(self).feed_data(data)

    def on_message_begin(self) -> None:
        self._headers, self._body, self.is_whole = [], b"", False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.is_whole = True
        self.messages.append((self._headers, self._body))


names = st.sampled_from(["X", "Accept", "content-length2", "X-Content-Length", "Cookie"])
lengths = st.sampled_from(["Content-Length: ", "content-length:", "CONTENT-LENGTH:\t ", "Content-length:  "])
edits = st.tuples(st.integers(0, 200), st.binary(max_size=3), st.integers(0, 3))


@given(
    st.lists(st.tuples(names, st.text("abc:;, 0123456789", max_size=8)), max_size=3),
    lengths,
    st.binary(max_size=30),
    st.binary(max_size=30),
    st.lists(edits, max_size=2),
)
@example([], "Content-Length: ", b"abc", b"", [(41, b"0", 0)])
@example([], "Content-Length: ", b"abc", b"abcd\r\n\r\n", [])
def test_a_recognised_request_is_what_the_parser_reads(
    headers: list[tuple[str, str]],
    length: str,
    first: bytes,
    second: bytes,
    changes: list[tuple[int, bytes, int]],
) -> None:
    def message(body: bytes) -> bytes:
        lines = ["POST /x HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, f"{length}{len(body)}", "Host: a", "", ""]).encode() + body

    data = message(first)
    [(read, _)] = Read(data).messages
    known = cached_head(data, read)
    assert known is not None
    assert known.body_of(data) == first
    again = message(second)
    for at, put, drop in changes:
        again = again[:at] + put + again[at + drop :]
    body = known.body_of(again)
    if body is None:
        return
    reader = Read(again)
    assert reader.is_whole
    [(expected, expected_body)] = reader.messages
    assert body == expected_body
    length_at = [name for name, _ in expected].index(b"content-length")
    expected[length_at] = (b"content-length", b"%d" % int(expected[length_at][1]))
    assert known.headers_for(body) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nabc",  # and more behind it
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\na",  # and more to come
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 5000 + b"\r\n\r\n",
    ],
)
def test_heads_that_are_not_cached(raw: bytes) -> None:
    lines = raw.strip().partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    assert cached_head(raw, headers) is None


def test_a_head_with_two_lengths_is_not_cached() -> None:
    headers = [(b"content-length", b"2"), (b"content-length", b"2")]
    assert (
        cached_head(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", headers) is None
    )
