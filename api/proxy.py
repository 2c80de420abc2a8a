"""The data plane: `ANY /proxy/{instance_id}/{path}` as a raw ASGI application, HTTP and WebSocket.

Takes a lease, or waits for one in the manager's queue, and forwards. Knows nothing of models and bodies.
"""

from __future__ import annotations

import logging
import time
from urllib.parse import unquote_to_bytes

from api.asgi import Receive, Scope, Send
from api.dispatch import raw_path
from api.errors import ApiError, error_for
from api.exchange import Exchange, Request, ResponseCut
from api.fast_http import channel_of
from api.headers import read_request_headers
from api.leases import CLIENT_GONE, ClientGone, Lease, Leases, lease_while_connected
from api.upstream import UpstreamError
from api.upstream_pool import UpstreamOptions, UpstreamPools
from api.websocket import forward_websocket
from instance_manager.errors import ManagerError
from instance_manager.metrics import ProxyMetrics

logger = logging.getLogger("berth.proxy")
access_logger = logging.getLogger("berth.access")


class DataPlane:
    """An ASGI application for http and websocket scopes whose path begins with /proxy/."""

    def __init__(self, leases: Leases, metrics: ProxyMetrics, options: UpstreamOptions | None = None) -> None:
        self._leases = leases
        self._metrics = metrics
        self.pools = UpstreamPools(options or UpstreamOptions())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        instance_id, target = split_proxy_path(raw_path(scope), scope["query_string"])
        if scope["type"] == "websocket":
            await forward_websocket(self._leases, self._metrics, scope, receive, send, instance_id, target)
        else:
            await self.forward(scope, receive, send, instance_id, target)

    def forget(self, instance_id: str) -> None:
        """The instance's engine process has ended: close the connections to it that are idle."""
        self.pools.forget(instance_id)

    def close(self) -> None:
        """Close what is idle; requests in flight close theirs as they end."""
        self.pools.close()

    async def forward(
        self, scope: Scope, receive: Receive, send: Send, instance_id: str, target: bytes
    ) -> None:
        """Serve one HTTP request with `target` (path and query, raw) of an instance's engine."""
        started = time.perf_counter()
        client = scope.get("client")
        client_host = client[0].encode() if client else b"unknown"
        headers = read_request_headers(scope["headers"], client_host, scope["scheme"].encode())
        request = Request(scope["method"], target, headers, started)
        channel = channel_of(scope)
        metrics = self._metrics.unserved
        status = CLIENT_GONE
        lease: Lease | None = None
        try:
            lease = self._leases.try_lease(instance_id)
            if lease is None:
                lease, receive = await lease_while_connected(self._leases, instance_id, receive)
            metrics = self._metrics.of(lease.instance_id, lease.model_name)
            metrics.in_flight += 1
            pool = self.pools.pool_for(lease.instance_id, lease.endpoint)
            status = await Exchange(request, pool, lease, metrics, receive, send, channel).run()
        except (ManagerError, UpstreamError) as exc:
            error = error_for(exc)
            status = error.status
            if isinstance(exc, UpstreamError):
                _log_failure(request, instance_id, exc)
            await _send_error(send, error, headers.request_id)
        except ResponseCut as exc:
            # To return without the last message makes any server close the connection without a clean end.
            if channel is not None:
                channel.abort()
            status = error_for(exc.error).status
            _log_failure(request, instance_id, exc.error)
        except ClientGone:
            pass
        finally:
            seconds = time.perf_counter() - started
            if lease is not None:
                lease.release()
                metrics.in_flight -= 1
            metrics.count(request.method, status)
            metrics.request_s.observe(seconds)
            if access_logger.isEnabledFor(logging.INFO):
                _log_access(scope, request, status, seconds, client_host)


def split_proxy_path(path: bytes, query: bytes) -> tuple[str, bytes]:
    """Instance id and engine's request target of `/proxy/{id}/{path}`, the latter as the client wrote it."""
    instance, slash, rest = path.removeprefix(b"/proxy/").partition(b"/")
    target = slash + rest if slash else b"/"
    if query:
        target += b"?" + query
    if b"%" in instance:
        instance = unquote_to_bytes(instance)
    return instance.decode("utf-8", "replace"), target


async def _send_error(send: Send, error: ApiError, request_id: bytes) -> None:
    headers = [*error.headers, (b"x-request-id", request_id)]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": error.body})


def _log_failure(request: Request, instance_id: str, error: UpstreamError) -> None:
    logger.warning(
        "instance %s, request %s, %s %s: %s",
        instance_id,
        request.headers.request_id.decode(),
        request.method,
        request.target.decode("latin-1"),
        error.message,
    )


def _log_access(scope: Scope, request: Request, status: int, seconds: float, client: bytes) -> None:
    access_logger.info(
        '%s "%s %s" %d %.1f ms %s',
        client.decode(),
        request.method,
        scope["path"],
        status,
        seconds * 1000,
        request.headers.request_id.decode(),
    )
