"""Small real servers and clients for the proxy's tests: raw sockets that can misbehave byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from api.http.asgi import Receive, Scope, Send
from api.http.dispatch import Dispatcher
from api.http.response_channel import FastPathApp
from api.http.route import RoutedApp
from api.proxy.pace import PaceRules
from api.proxy.peer_routes import PeerRoutes
from api.proxy.proxy import DataPlane
from api.proxy.upstream_pool import UpstreamOptions
from api.server.limits import ConnectionLimits
from api.server.protocol import HttpServer
from instance_manager.errors import InstanceNotFound, ManagerError
from instance_manager.metrics.proxy import ProxyMetrics
from instance_manager.state.peers import Peers
from instance_manager.types import Endpoint

# Berth's own server; and any ASGI server, without our extension and without uvloop.
HAS_FAST_PATH = True  # of Berth's own server; test_without_fast_path.py switches it off
LOOPS = [("asyncio", {"use_uvloop": True}), ("asyncio", {"use_uvloop": False})]


def server_protocol() -> Any:
    """The HTTP protocol for the loop that runs the test: Berth's own, or uvicorn's."""
    is_uvloop = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    limits = ConnectionLimits(max_body_bytes=2**31)  # these tests send more than the default limit
    return HttpServer(limits, has_fast_path=HAS_FAST_PATH).protocol() if is_uvloop else "httptools"


Headers = list[tuple[bytes, bytes]]


@dataclass
class Head:
    """A request's or a response's first line and headers, names in lower case."""

    line: bytes
    headers: Headers

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    def get(self, name: bytes) -> bytes | None:
        return next(iter(self.all(name)), None)

    @property
    def status(self) -> int:
        return int(self.line.split()[1])


@dataclass
class Wire:
    """One connection with HTTP's framing on top; the same for both ends."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
        await self.writer.drain()

    async def read_head(self) -> Head:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *rest = raw[:-4].split(b"\r\n")
        pairs = (header.split(b":", 1) for header in rest)
        return Head(line, [(name.lower(), value.strip()) for name, value in pairs])

    async def read_chunk(self) -> bytes:
        size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
        data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def read_body(self, head: Head) -> bytes:
        """By chunks or by length; raises IncompleteReadError if the body is cut off."""
        if head.get(b"transfer-encoding") is not None:
            body = b""
            while chunk := await self.read_chunk():
                body += chunk
            return body
        return await self.reader.readexactly(int(head.get(b"content-length") or 0))

    async def read_message(self) -> tuple[Head, bytes]:
        head = await self.read_head()
        return head, await self.read_body(head)

    async def wait_closed(self) -> None:
        """Wait until the other side closes."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        """Close with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


Script = Callable[[Wire], Awaitable[None]]


@dataclass
class Upstream:
    """A listening engine; `num_connections` counts what it has accepted."""

    endpoint: Endpoint
    num_connections: int = 0
    errors: list[BaseException] = field(default_factory=list)


@contextlib.asynccontextmanager
async def upstream(script: Script, *, api_key: str = "engine-key") -> AsyncIterator[Upstream]:
    """Serve each connection by `script`; it is closed when that returns. Errors in it fail the test."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        engine.num_connections += 1
        wire = Wire(reader, writer)
        try:
            await script(wire)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # Berth closed its side, or the test is over
        except Exception as exc:
            engine.errors.append(exc)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    engine = Upstream(Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], api_key, 1))
    try:
        yield engine
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        assert engine.errors == []


def free_port() -> int:
    """An unused port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class StubLease:
    def __init__(self, leases: StubLeases, instance_id: str, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.instance_id = instance_id
        self.model_name = "stub-model"
        self._leases = leases
        self._is_out = True
        leases.num_out += 1

    @property
    def is_wanted(self) -> bool:
        return self._leases.others_wait

    def release(self) -> None:
        if self._is_out:
            self._is_out = False
            self._leases.num_out -= 1
            self._leases.changed.set()


class StubLeases:
    """The manager's interface for the data plane, with states set by the test."""

    def __init__(self, **endpoints: Endpoint) -> None:
        self.endpoints = dict(endpoints)
        self.pending: dict[str, asyncio.Future[Endpoint]] = {}
        self.refusal: ManagerError | None = None
        self.num_out = 0
        self.num_waiting = 0
        self.others_wait = False
        self.changed = asyncio.Event()

    def try_lease(self, instance_id: str) -> StubLease | None:
        if self.refusal is not None:
            raise self.refusal
        if instance_id in self.pending:
            return None
        if instance_id not in self.endpoints:
            raise InstanceNotFound(f"no instance {instance_id!r}")
        return StubLease(self, instance_id, self.endpoints[instance_id])

    async def wait_for_lease(self, instance_id: str) -> StubLease:
        self.num_waiting += 1
        self.changed.set()
        try:
            endpoint = await asyncio.shield(self.pending[instance_id])
        finally:
            self.num_waiting -= 1
            self.changed.set()
        return StubLease(self, instance_id, endpoint)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a change makes `condition` true."""
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Front:
    """Only Berth's data plane, behind a real uvicorn."""

    port: int
    plane: DataPlane
    metrics: ProxyMetrics
    leases: StubLeases
    server: uvicorn.Server

    async def connect(self) -> Wire:
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**20))

    async def ask(self, raw: bytes) -> tuple[Head, bytes]:
        """One request, one response, on its own connection."""
        wire = await self.connect()
        try:
            await wire.send(raw)
            return await wire.read_message()
        finally:
            await wire.close()


async def control_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Replaces the control plane."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": b"control"})


@contextlib.asynccontextmanager
async def berth(
    engine: Upstream | StubLeases,
    options: UpstreamOptions | None = None,
    *,
    keep_alive_s: int = 5,
    behind: Callable[[RoutedApp], FastPathApp] = lambda app: app,
    pace: PaceRules | None = None,
    peers: Peers | None = None,
) -> AsyncIterator[Front]:
    """The data plane in front of `engine`, its instance "one". Checks that no request leaks.

    `behind` wraps the whole application.
    """
    leases = engine if isinstance(engine, StubLeases) else StubLeases(one=engine.endpoint)
    metrics = ProxyMetrics()
    routes = PeerRoutes(peers, metrics, lambda: "here") if peers is not None else None
    plane = DataPlane(leases, metrics, options, pace=pace, peer_routes=routes)
    config = uvicorn.Config(
        behind(Dispatcher(control_app, plane)),
        http=server_protocol(),
        lifespan="off",
        log_config=None,
        server_header=False,
        date_header=False,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=keep_alive_s,
    )
    server = uvicorn.Server(config)
    sock = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    await eventually(lambda: server.started)
    try:
        yield Front(sock.getsockname()[1], plane, metrics, leases, server)
        async with asyncio.timeout(2):
            await leases.until(lambda: leases.num_out == 0 and leases.num_waiting == 0)
            await eventually(lambda: num_busy(plane) == 0)
    finally:
        server.should_exit = True
        await serving
        sock.close()
        plane.close()
    assert all(instance.in_flight == 0 for _, instance in metrics._all())


async def eventually(condition: Callable[[], bool]) -> None:
    """Poll a condition that has no event."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def num_busy(plane: DataPlane) -> int:
    """Connections to engines that are not idle."""
    pools = plane.pools._pools.values()
    return sum(pool.num_open - pool.num_idle for pool in pools)


def request(target: str = "/proxy/one/x", *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    """A request's bytes; a body adds its Content-Length."""
    lines = [f"{method} {target} HTTP/1.1", "Host: berth.test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def response(body: bytes = b"ok", *headers: str, status: str = "200 OK") -> bytes:
    """A response's bytes, with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
