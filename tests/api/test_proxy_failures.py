"""Disconnecting clients, failing engines and waiting requests: no leaks, and correct errors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import time
from typing import Any

import pytest

from api.proxy.exchange import Exchange
from api.proxy.proxy import DataPlane
from api.proxy.upstream_pool import UpstreamOptions
from instance_manager.errors import (
    InstanceFailedToStart,
    InstanceNotRunning,
    ManagerError,
    QueueFull,
    ShuttingDown,
)
from instance_manager.metrics.proxy import ProxyMetrics
from instance_manager.types import Endpoint
from tests.api.upstreams import (
    LOOPS,
    Head,
    StubLeases,
    Wire,
    berth,
    eventually,
    num_busy,
    request,
    response,
    upstream,
)

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"9\r\ndata: 1\n\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NOTICED_S = 0.1  # within which a disconnect must reach the engine
SLACK_S = 0.15  # what a busy test machine may add


@pytest.fixture(params=LOOPS, ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Silent:
    """Reads a request, sends `begin`, and then waits until Berth closes the connection."""

    def __init__(self, begin: bytes = b"") -> None:
        self.begin = begin
        self.got_request = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self, wire: Wire) -> None:
        await wire.read_message()
        await wire.send(self.begin)
        self.got_request.set()
        await wire.wait_closed()
        self.closed.set()


# Clients that leave


@pytest.mark.parametrize("begin", [b"", CHUNKED_HEAD, SSE_HEAD + EVENT], ids=["no head", "head", "stream"])
@pytest.mark.parametrize("raw", [request(), request(method="POST", body=b"{}")], ids=["GET", "POST"])
@pytest.mark.parametrize("wait_s", [0.0, 0.2])
async def test_trap_3_a_disconnect_ends_the_engines_request(begin: bytes, raw: bytes, wait_s: float) -> None:
    silent = Silent(begin)
    async with upstream(silent) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(raw)
        await silent.got_request.wait()
        if begin:
            await wire.read_head()
        await asyncio.sleep(wait_s)
        left = time.perf_counter()
        await wire.close()
        await silent.closed.wait()
        assert time.perf_counter() - left < NOTICED_S + SLACK_S
        await front.leases.until(lambda: front.leases.num_out == 0)
        assert front.metrics.of("one", "").requests == {(raw.split()[0].decode(), 499): 1}


@pytest.mark.parametrize("leaves", [True, False], ids=["left", "ended"])
async def test_a_stream_leaves_nothing_to_the_garbage_collector(leaves: bool) -> None:
    """It runs rarely, and each such request may hold buffers of a megabyte."""

    def num_exchanges() -> int:
        return sum(type(one) is Exchange for one in gc.get_objects())  # isinstance would wake lazy ones

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(SSE_HEAD + EVENT)
        await asyncio.sleep(0.1)
        if leaves:
            await wire.wait_closed()
        else:
            await wire.send(b"0\r\n\r\n")

    async with upstream(script) as engine, berth(engine) as front:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                wire = await front.connect()
                await wire.send(request())
                await (wire.read_head() if leaves else wire.read_message())
                await wire.close()
            await front.leases.until(lambda: front.leases.num_out == 0)
            await eventually(lambda: num_exchanges() == 0)
        finally:
            gc.enable()


async def test_trap_3_a_disconnect_in_the_middle_of_an_upload() -> None:
    got = asyncio.Event()
    closed = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.reader.readexactly(5)
        got.set()
        await wire.wait_closed()
        closed.set()

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(request("/proxy/one/x", "Content-Length: 100", method="POST") + b"first")
        await got.wait()
        left = time.perf_counter()
        await wire.close()
        await closed.wait()
        assert time.perf_counter() - left < NOTICED_S + SLACK_S


async def test_trap_4_a_disconnect_after_the_last_byte_costs_no_connection() -> None:
    """Clients that close right after their response, slow ones included: one connection serves all."""

    async def script(wire: Wire) -> None:
        while True:
            head, _ = await wire.read_message()
            if b"slow" in head.line:
                await asyncio.sleep(0.1)
            await wire.send(CHUNKED_HEAD + b"2\r\nok\r\n", b"0\r\n\r\n")

    async with upstream(script) as engine, berth(engine) as front:
        for target in ("/proxy/one/slow", "/proxy/one/fast") * 5:
            assert (await front.ask(request(target)))[1] == b"ok"
        assert engine.num_connections == 1
        assert front.plane.pools.num_open == 1


async def test_trap_4_engine_and_lease_are_free_before_the_last_message_is_sent() -> None:
    """With a fake server: one may report the disconnect, or cancel, from within the last `send`."""

    async def script(wire: Wire) -> None:
        while True:
            await wire.read_message()
            await wire.send(response(b"all"))

    async with upstream(script) as engine:
        leases = StubLeases(one=engine.endpoint)
        plane = DataPlane(leases, ProxyMetrics())
        at_last: list[tuple[int, int]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                at_last.append((leases.num_out, num_busy(plane)))
                raise asyncio.CancelledError

        scope = {
            "type": "http",
            "method": "GET",
            "raw_path": b"/proxy/one/x",
            "query_string": b"",
            "headers": [],
        }
        with pytest.raises(asyncio.CancelledError):
            await plane({**scope, "scheme": "http", "path": "/proxy/one/x", "client": None}, receive, send)
        assert at_last == [(0, 0)]
        assert plane.pools.num_open == 1
        plane.close()


# Engines that break


async def cut(
    raw_request: bytes, engine_answer: bytes, *, reset: bool = False
) -> tuple[Head, bytes, list[int]]:
    """The response of an engine that closes after it: head, raw rest, counted statuses."""

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(engine_answer)
        if reset:
            await asyncio.sleep(0.05)  # let the bytes arrive before the RST
            wire.reset()

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(raw_request)
        head = await wire.read_head()
        rest = await (wire.reader.read() if head.status == 200 else wire.read_body(head))
        await wire.close()
        await front.leases.until(lambda: front.leases.num_out == 0)
        await eventually(lambda: bool(front.metrics.of("one", "").requests))
        return head, rest, [status for _, status in front.metrics.of("one", "").requests]


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_trap_6_a_broken_event_stream_ends_with_an_error_event(
    reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    head, rest, statuses = await cut(request(), SSE_HEAD + EVENT, reset=reset)
    assert head.status == 200
    assert rest.startswith(b"9\r\ndata: 1\n\n\r\n")
    assert not rest.endswith(b"0\r\n\r\n")
    event = rest.split(b"\r\n")[3]
    assert event.startswith(b"data: {") and event.endswith(b"\n\n")
    assert json.loads(event[6:])["error"]["code"] == "engine_disconnected"
    assert statuses == [502]
    ours = [record for record in caplog.records if record.name.startswith("berth")]
    assert len(ours) == 1 and ours[0].exc_info is None


async def test_trap_6_half_an_event_is_terminated_before_the_error() -> None:
    _, rest, _ = await cut(request(), SSE_HEAD + b"6\r\ndata: \r\n")
    assert rest.split(b"\r\n")[3].startswith(b"\n\ndata: {")


@pytest.mark.parametrize(
    ("raw", "rest"),
    [
        (CHUNKED_HEAD + b"3\r\nabc\r\n", b"3\r\nabc\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"abc"),
        (CHUNKED_HEAD + b"3\r\nabc\r\n2", b"3\r\nabc\r\n"),
        (
            SSE_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"3\r\nabc\r\n",
            b"3\r\nabc\r\n",
        ),
    ],
    ids=["chunked", "length", "half a chunk", "encoded events"],
)
async def test_trap_6_any_other_broken_body_is_aborted(raw: bytes, rest: bytes) -> None:
    head, got, statuses = await cut(request(), raw)
    assert (head.status, got, statuses) == (200, rest, [502])


async def test_trap_6_garbage_in_the_middle_of_a_body_is_aborted_too() -> None:
    sent_first = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(CHUNKED_HEAD + b"3\r\nabc\r\n")
        await sent_first.wait()
        await wire.send(b"zz\r\nnot a chunk")
        await wire.wait_closed()

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(request())
        await wire.read_head()
        assert await wire.read_chunk() == b"abc"
        sent_first.set()
        assert await wire.reader.read() == b""
        await wire.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        CHUNKED_HEAD + b"xyz\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nfoo",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 300_000,
        b"HTTP/1.1 103 Hints\r\n\r\n",
    ],
    ids=[
        "nothing",
        "half a head",
        "ssh",
        "tls",
        "two lengths",
        "negative length",
        "length and chunked",
        "unknown coding",
        "bad chunk at once",
        "unasked upgrade",
        "endless head",
        "interim alone",
    ],
)
async def test_invalid_responses_are_502_and_their_connection_is_not_reused(raw: bytes) -> None:
    head, rest, statuses = await cut(request(method="POST", body=b"{}"), raw)
    assert (head.status, statuses) == (502, [502])
    assert json.loads(rest)["error"]["type"] == "upstream_error"


@pytest.mark.parametrize("begin", [b"0\r\nX-Trailer: ", b"5;"], ids=["trailer", "chunk extension"])
async def test_endless_framing_of_a_body_is_aborted(begin: bytes) -> None:
    closed = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(CHUNKED_HEAD + b"3\r\nabc\r\n" + begin)
        with contextlib.suppress(ConnectionError):
            while not wire.writer.is_closing():
                await wire.send(b"x" * 10_000)
        closed.set()

    async with upstream(script) as engine, berth(engine) as front:
        wire = await front.connect()
        await wire.send(request())
        await wire.read_head()
        async with asyncio.timeout(20):
            assert await wire.read_chunk() == b"abc"
            assert await wire.reader.read() == b"", "no clean end"
            await closed.wait()
        await wire.close()


async def test_more_bytes_than_announced_never_become_the_next_response() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b"one") + response(b"smuggled"))
        await wire.wait_closed()

    async with upstream(script) as engine, berth(engine) as front:
        for number in (1, 2):
            assert (await front.ask(request()))[1] == b"one"
            assert engine.num_connections == number


async def test_unsolicited_bytes_close_the_connection() -> None:
    go = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b"one"))
        await go.wait()
        await wire.send(response(b"unasked"))
        await wire.wait_closed()

    async with upstream(script) as engine, berth(engine) as front:
        assert (await front.ask(request()))[1] == b"one"
        go.set()
        await eventually(lambda: front.plane.pools.num_open == 0)
        assert (await front.ask(request()))[1] == b"one"


async def test_an_engine_too_slow_for_its_head_is_504() -> None:
    silent = Silent()
    async with upstream(silent) as engine, berth(engine, UpstreamOptions(head_timeout_s=0.1)) as front:
        head, body = await front.ask(request())
        await silent.closed.wait()
    assert head.status == 504
    assert json.loads(body)["error"]["code"] == "engine_timeout"


# Connections that had ended unnoticed


class OneAnswer:
    """Serves one request per connection and closes it on the next, without a byte of response."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    async def __call__(self, wire: Wire) -> None:
        for _ in range(2):
            head, _ = await wire.read_message()
            self.requests.append(head.line.split()[0])
            if len(self.requests) % 2:
                await wire.send(response(b"ok"))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_trap_7_an_idempotent_request_is_retried_on_a_fresh_connection(method: str) -> None:
    script = OneAnswer()
    async with upstream(script) as engine, berth(engine) as front:
        assert (await front.ask(request()))[1] == b"ok"
        wire = await front.connect()
        await wire.send(request(method=method))
        assert (await wire.read_head()).status == 200
        await wire.close()
        assert engine.num_connections == 2
    assert script.requests == [b"GET", method.encode(), method.encode()]


@pytest.mark.parametrize(("method", "body"), [("POST", b"{}"), ("POST", b""), ("PATCH", b""), ("PUT", b"x")])
async def test_trap_7_other_requests_are_sent_once(method: str, body: bytes) -> None:
    script = OneAnswer()
    async with upstream(script) as engine, berth(engine) as front:
        assert (await front.ask(request()))[1] == b"ok"
        assert (await front.ask(request(method=method, body=body)))[0].status == 502
    assert script.requests == [b"GET", method.encode()]


async def test_trap_7_a_fresh_connection_that_breaks_is_not_retried() -> None:
    count = 0

    async def script(wire: Wire) -> None:
        nonlocal count
        await wire.read_message()
        count += 1

    async with upstream(script) as engine, berth(engine) as front:
        assert (await front.ask(request()))[0].status == 502
    assert count == 1


async def test_trap_7_a_connection_closed_while_idle_is_not_reused() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b"ok"))

    async with upstream(script) as engine, berth(engine) as front:
        for _ in range(3):
            head, _ = await front.ask(request(method="POST", body=b"{}"))
            assert head.status == 200
            await eventually(lambda: front.plane.pools.num_open == 0)


async def test_trap_7_idle_connections_are_closed_before_the_engine_does() -> None:
    closed = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b"ok"))
        await wire.wait_closed()
        closed.set()

    async with upstream(script) as engine, berth(engine, UpstreamOptions(idle_timeout_s=0.2)) as front:
        await front.ask(request())
        async with asyncio.timeout(1):
            await closed.wait()
        assert front.plane.pools.num_open == 0


async def test_a_new_engine_process_gets_connections_of_its_own() -> None:
    def named(name: bytes) -> Any:
        async def script(wire: Wire) -> None:
            while True:
                await wire.read_message()
                await wire.send(response(name))

        return script

    async with upstream(named(b"old")) as old, upstream(named(b"new")) as new, berth(old) as front:
        assert (await front.ask(request()))[1] == b"old"
        endpoint = new.endpoint
        front.leases.endpoints["one"] = Endpoint(endpoint.host, endpoint.port, endpoint.api_key, 2)
        assert (await front.ask(request()))[1] == b"new"
        assert front.plane.pools.num_open == 1
        front.leases.endpoints["one"] = old.endpoint  # a lease from before
        assert (await front.ask(request()))[0].status == 502
        front.plane.forget("one")
        assert len(front.plane.pools) == 0


# Instances that are not there yet


async def test_a_request_waits_for_its_instance() -> None:
    async def script(wire: Wire) -> None:
        _, body = await wire.read_message()
        await wire.send(response(body))

    async with upstream(script) as engine:
        leases = StubLeases()
        leases.pending["one"] = asyncio.get_running_loop().create_future()
        async with berth(leases) as front:
            asking = asyncio.create_task(
                front.ask(request(method="POST", body=b"kept while waiting" * 10_000))
            )
            await leases.until(lambda: leases.num_waiting == 1)
            leases.pending["one"].set_result(engine.endpoint)
            head, body = await asking
    assert (head.status, body) == (200, b"kept while waiting" * 10_000)


async def test_a_disconnect_in_the_queue_leaves_no_lease() -> None:
    leases = StubLeases()
    leases.pending["one"] = asyncio.get_running_loop().create_future()
    async with berth(leases) as front:
        wire = await front.connect()
        await wire.send(request(method="POST", body=b"{}"))
        await leases.until(lambda: leases.num_waiting == 1)
        left = time.perf_counter()
        await wire.close()
        await leases.until(lambda: leases.num_waiting == 0)
        assert time.perf_counter() - left < NOTICED_S + SLACK_S
        leases.pending["one"].cancel()


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (InstanceNotRunning("stopped; start it"), 409, None),
        (QueueFull("256 wait already"), 429, b"1"),
        (ShuttingDown("on its way out", retry_after_s=7.4), 503, b"7"),
        (InstanceFailedToStart("out of memory"), 503, None),
    ],
)
async def test_refusals_have_their_status(
    error: ManagerError, status: int, retry_after: bytes | None
) -> None:
    leases = StubLeases()
    leases.refusal = error
    async with berth(leases) as front:
        head, body = await front.ask(request(method="POST", body=b"{}"))
    assert (head.status, head.get(b"retry-after")) == (status, retry_after)
    assert json.loads(body)["error"]["message"] == error.message
    assert json.loads(body)["error"]["code"] == error.code


async def test_one_line_in_the_access_log_per_request(caplog: pytest.LogCaptureFixture) -> None:
    async def script(wire: Wire) -> None:
        await wire.read_message()
        await wire.send(response(b"ok"))

    with caplog.at_level(logging.INFO, logger="berth.access"):
        async with upstream(script) as engine, berth(engine) as front:
            await front.ask(request("/proxy/one/x?secret=1", "X-Request-Id: r-7"))
    lines = [record.getMessage() for record in caplog.records if record.name == "berth.access"]
    assert len(lines) == 1
    assert '"GET /proxy/one/x" 200' in lines[0]
    assert lines[0].endswith(" ms r-7, instance one, model stub-model")
    assert "secret" not in lines[0]
