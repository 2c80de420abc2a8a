"""Forwards WebSockets: ASGI on the client's side, the `websockets` package on the engine's.

Each side has its own pings and extensions; subprotocols, close codes and refusals are passed through.
"""

from __future__ import annotations

import asyncio
import logging
import time

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from api.access.keys import is_admin
from api.http.asgi import RawHeaders, Receive, Scope, Send
from api.http.client_errors import CLIENT_GONE, ClientGone
from api.http.errors import ApiError, api_error, error_for
from api.http.headers import (
    handshake_headers,
    handshake_response_headers,
    without_key,
)
from api.http.respond import refuse_handshake, request_id_of
from api.http.upstream_errors import UpstreamError, UpstreamInvalidResponse, UpstreamRefused, UpstreamTimeout
from api.proxy.target import Target, UpstreamLease, acquire_while_connected
from api.telemetry.access_log import access_logger, write_line
from instance_manager.errors import ManagerError
from instance_manager.metrics.proxy import InstanceMetrics, ProxyMetrics

logger = logging.getLogger("berth.proxy")

_OPEN_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5.0
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # messages are forwarded whole, so they need a limit

_NO_STATUS, _VANISHED = 1005, 1006  # close codes that are only reported, never sent
_NORMAL_CLOSURE, _GOING_AWAY, _INTERNAL_ERROR = 1000, 1001, 1011


async def forward_websocket(
    target: Target, metrics: ProxyMetrics, scope: Scope, receive: Receive, send: Send, stall_s: float = 0.0
) -> None:
    """Serve one WebSocket, holding a lease for its whole life.

    `stall_s`: how long the client may leave a message unread while other requests wait for the lease.
    """
    started = time.perf_counter()
    request_id = request_id_of(scope)
    await receive()  # websocket.connect
    if b"#" in target.path:  # a request target has no fragment
        error = api_error(400, "the path contains '#'; write it as %23", "invalid_request_error")
        metrics.unserved.count("WEBSOCKET", error.status)
        await refuse_handshake(scope, send, error, request_id, _NORMAL_CLOSURE)
        return
    counted = metrics.unserved
    status = 101
    lease: UpstreamLease | None = None
    try:
        lease = target.try_acquire()
        if lease is None:
            lease, receive = await acquire_while_connected(target, receive)
        counted = metrics.of(lease.instance_id, lease.model_name)
        counted.in_flight += 1
        async with await _open(scope, lease, target, request_id) as engine:
            await _accept(send, engine, request_id)
            await _pump(engine, receive, send, _Stall(lease, stall_s))
    except InvalidStatus as exc:
        status = exc.response.status_code
        headers = handshake_response_headers(_encoded(exc.response.headers.raw_items()))
        body = exc.response.body or b""
        headers.append((b"content-length", b"%d" % len(body)))
        error = ApiError(status, bytes(body), headers, "")
        await refuse_handshake(scope, send, error, request_id, _NORMAL_CLOSURE)
    except ClientGone:
        status = CLIENT_GONE
    except (ManagerError, UpstreamError) as exc:
        error = error_for(exc, is_admin=is_admin(scope))
        status = error.status
        if isinstance(exc, UpstreamError):
            logger.warning("instance %s, websocket %s: %s", target.name, request_id.decode(), exc.message)
            target.failed()
        await refuse_handshake(scope, send, error, request_id, _NORMAL_CLOSURE)
    finally:
        if lease is not None:
            lease.release()
            counted.in_flight -= 1
        _account(scope, counted, status, started, request_id)


def _account(scope: Scope, counted: InstanceMetrics, status: int, started: float, request_id: bytes) -> None:
    counted.count("WEBSOCKET", status)
    counted.request_s.observe(time.perf_counter() - started)
    if access_logger.isEnabledFor(logging.INFO):
        instance, model = counted.instance_id, counted.model
        write_line(scope, status, started, request_id, instance=instance, model=model)


async def _open(scope: Scope, lease: UpstreamLease, target: Target, request_id: bytes) -> ClientConnection:
    """Do the handshake with the engine. Raises InvalidStatus if it refuses, UpstreamError if it fails."""
    endpoint = lease.endpoint
    offered = scope.get("subprotocols", ())
    if not endpoint.is_peer:
        offered = without_key(offered)
    headers = [*handshake_headers(scope["headers"]), (b"x-request-id", request_id), *target.headers]
    if endpoint.is_peer:  # so that it does not take the client for one on its own machine
        client = scope.get("client")
        headers.append((b"x-forwarded-for", client[0].encode() if client else b"unknown"))
    if endpoint.api_key:
        headers.append((b"authorization", b"Bearer " + endpoint.api_key.encode()))
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    where = f"{'the Berth node' if endpoint.is_peer else 'the engine'} at {host}:{endpoint.port}"
    try:
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            return await _Connect(
                f"ws://{host}:{endpoint.port}{target.path.decode('latin-1')}",
                subprotocols=[Subprotocol(name) for name in offered] or None,
                additional_headers=[
                    (name.decode("latin-1"), value.decode("latin-1")) for name, value in headers
                ],
                user_agent_header=None,
                compression=None,
                proxy=None,
                open_timeout=None,
                close_timeout=_CLOSE_TIMEOUT_S,
                ping_interval=None,
                max_size=_MAX_MESSAGE_BYTES,
                max_queue=2,
                process_exception=lambda exc: exc,
            )
    except TimeoutError as exc:
        raise UpstreamTimeout(
            f"{where} did not complete the WebSocket handshake within {_OPEN_TIMEOUT_S:g} s"
        ) from exc
    except InvalidStatus:
        raise
    except InvalidHandshake as exc:
        raise UpstreamInvalidResponse(f"{where} sent an invalid WebSocket handshake: {exc}") from exc
    except OSError as exc:
        raise UpstreamRefused(f"cannot connect to {where}: {exc.strerror or exc}") from exc


class _Connect(connect):
    """Follows no redirects: `connect` would, with all headers, to any address that an engine names."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def _accept(send: Send, engine: ClientConnection, request_id: bytes) -> None:
    response = engine.response
    headers = (
        handshake_response_headers(_encoded(response.headers.raw_items())) if response is not None else []
    )
    headers.append((b"x-request-id", request_id))
    await send({"type": "websocket.accept", "subprotocol": engine.subprotocol, "headers": headers})


class _Stall:
    """Detects a client that leaves a message unread while other requests wait for its lease."""

    def __init__(self, lease: UpstreamLease, limit_s: float) -> None:
        self._lease = lease
        self._limit_s = limit_s  # 0 = none
        self.since: float | None = None  # when the message in transit was sent

    async def wait(self) -> None:
        """Return once the client has stalled."""
        if not self._limit_s:
            await asyncio.Future()
        while True:
            await asyncio.sleep(self._limit_s / 2)
            waited_s = 0.0 if self.since is None else time.perf_counter() - self.since
            if waited_s >= self._limit_s / 2 and self._lease.is_wanted:
                return


async def _pump(engine: ClientConnection, receive: Receive, send: Send, stall: _Stall) -> None:
    """Forward messages both ways until either side closes; then close the other with the same code."""
    upward = asyncio.ensure_future(_client_to_engine(engine, receive))
    downward = asyncio.ensure_future(_engine_to_client(engine, send, stall))
    stalled = asyncio.ensure_future(stall.wait())
    try:
        await asyncio.wait((upward, downward, stalled), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if stalled.done() and not upward.done() and not downward.done():
            logger.warning("cut off a WebSocket whose client read nothing while other requests waited")
            engine.transport.abort()
        for task in (upward, downward, stalled):
            task.cancel()
        results = await asyncio.gather(upward, downward, return_exceptions=True)
    for result in results:
        if isinstance(result, OSError):
            # The client vanished while we sent to it: no closing handshake, as the engine may keep sending.
            engine.transport.abort()
        elif isinstance(result, Exception):
            raise result


async def _client_to_engine(engine: ClientConnection, receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code", _NO_STATUS)
            if code == _NO_STATUS:
                await engine.close()
            else:
                await engine.close(_GOING_AWAY if code == _VANISHED else code, message.get("reason") or "")
            return
        text = message.get("text")
        try:
            await engine.send(text if text is not None else message["bytes"])
        except ConnectionClosed:
            return


async def _engine_to_client(engine: ClientConnection, send: Send, stall: _Stall) -> None:
    try:
        while True:
            data = await engine.recv()
            stall.since = time.perf_counter()
            await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
            stall.since = None
    except ConnectionClosed as exc:
        if exc.rcvd is None:
            code, reason = _INTERNAL_ERROR, "the engine closed the connection"
        else:
            code, reason = exc.rcvd.code, exc.rcvd.reason
        if code == _NO_STATUS:
            code = _NORMAL_CLOSURE
        await send({"type": "websocket.close", "code": code, "reason": reason})


def _encoded(headers: object) -> RawHeaders:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]  # type: ignore[attr-defined]
