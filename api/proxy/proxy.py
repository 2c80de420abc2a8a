"""The data plane: `ANY /proxy/{instance_id}/{path}` as a raw ASGI application, HTTP and WebSocket.

Acquires a lease, or waits for one in the manager's queue, and forwards. Knows nothing of models and bodies.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from api.access.engine_routes import SAFE_METHODS
from api.access.keys import caller_of, is_admin
from api.http.asgi import Receive, Scope, Send
from api.http.dispatch import raw_path, split_proxy_path
from api.http.errors import error_for
from api.http.head_cache import ROUTE_CACHE, RouteCache
from api.http.headers import find_header, read_request_headers
from api.http.leases import (
    CLIENT_GONE,
    ClientGone,
    Lease,
    Leases,
    Prepare,
    Retry,
    WrongBody,
    lease_while_connected,
)
from api.http.respond import send_error
from api.http.response_channel import ResponseChannel, ResumeAsTask, channel_of, client_of, without_channel
from api.http.upstream_errors import UpstreamBroken, UpstreamError, UpstreamRefused
from api.proxy.call import Call
from api.proxy.exchange import Exchange, ResponseCut
from api.proxy.fast_exchange import FastExchange, SlowRequestTimer
from api.proxy.pace import Pace, PaceRules
from api.proxy.peer_routes import PeerRoute, PeerRoutes
from api.proxy.sleep_routes import SleepCall, SleepLeases, SleepNotices, is_sleep_route
from api.proxy.upstream_pool import UpstreamOptions, UpstreamPool, UpstreamPools
from api.proxy.upstream_request import UpstreamRequest
from api.proxy.websocket import forward_websocket
from instance_manager.errors import ManagerError
from instance_manager.metrics.proxy import ProxyMetrics

_UNAVAILABLE = 503  # status of a sleeping engine


class DataPlane:
    """An ASGI application for http and websocket scopes whose path begins with /proxy/."""

    def __init__(
        self,
        leases: Leases,
        metrics: ProxyMetrics,
        options: UpstreamOptions | None = None,
        *,
        peer_routes: PeerRoutes | None = None,
        sleep: SleepNotices | None = None,
        pace: PaceRules | None = None,
    ) -> None:
        self._leases = leases
        self._sleep = sleep  # notified when an engine is put to sleep by its own routes
        self._metrics = metrics
        self._peer_routes = peer_routes  # to instances of other nodes
        self._pace = pace or PaceRules()  # of clients while other requests wait
        self._slow_timer = SlowRequestTimer()
        self.pools = UpstreamPools(options or UpstreamOptions())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        instance_id, target = split_proxy_path(raw_path(scope), scope["query_string"])
        peer_route = (
            self._peer_routes.to_instance(scope, instance_id) if self._peer_routes is not None else None
        )
        if peer_route is not None:
            target = peer_route.target
        if scope["type"] == "websocket":
            leases, headers = (
                (peer_route, peer_route.headers) if peer_route is not None else (self._leases, ())
            )
            await forward_websocket(
                leases, self._metrics, scope, receive, send, instance_id, target, headers, self._pace.stall_s
            )
        elif self._sleep is not None and peer_route is None and is_sleep_route(target):
            await self._forward_sleep(self._sleep, scope, receive, send, instance_id, target)
        elif self._sleep is not None and peer_route is None and scope["method"] in SAFE_METHODS:
            leases = SleepLeases(self._sleep, self._leases, scope["method"])  # reads wake no engine
            await self.forward(scope, receive, send, instance_id, target, leases=leases)
        else:
            await self.forward(scope, receive, send, instance_id, target, leases=peer_route)

    async def _forward_sleep(
        self,
        notices: SleepNotices,
        scope: Scope,
        receive: Receive,
        send: Send,
        instance_id: str,
        target: bytes,
    ) -> None:
        """One of an engine's sleep routes. Its response goes out by `send`, where its status is noted."""
        call = SleepCall(notices, instance_id, target, send)
        leases = SleepLeases(notices, self._leases, scope["method"])
        try:
            await self.forward(without_channel(scope), receive, call.send, instance_id, target, leases=leases)
        finally:
            call.end()

    def forget(self, instance_id: str) -> None:
        """The instance's engine process has ended: close idle connections to it."""
        self.pools.forget(instance_id)

    def count_refused(self, method: str, status: int) -> None:
        """Count a request that was refused before `forward`."""
        self._metrics.unserved.count(method, status)

    def close(self) -> None:
        """Close idle connections; requests in flight close theirs as they end."""
        self.pools.close()

    async def forward(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        instance_id: str,
        target: bytes,
        *,
        leases: Leases | None = None,
        retry: Retry | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        """Forward one HTTP request to `target` (path and query, raw) of an instance's engine.

        `leases` replaces the usual ones, for targets other than one instance. `retry` is called if an engine
        disappears before it responds. `prepare` adapts the request to the engine of its lease.
        """
        call = self._call(scope, instance_id, target)
        if isinstance(leases, PeerRoute):
            call.request.headers = call.request.headers.with_more(leases.headers)
        channel = channel_of(scope)
        exchange = self._exchange(
            call, leases or self._leases, retry, receive, send, channel, prepare=prepare
        )
        await self._serve(call, send, channel, exchange)

    def begin(
        self, scope: Scope, body: bytes, channel: ResponseChannel, resume_as_task: ResumeAsTask
    ) -> bool:
        """Send a request that has arrived whole without a task, if nothing has to be awaited.

        False: nothing was done, call the application. True: the response goes out by `channel`, or
        `resume_as_task` is called with an application that continues the request.
        """
        route_cache: RouteCache | None = scope.get(ROUTE_CACHE)
        if route_cache is not None and "proxied" in route_cache:
            instance_id, target = route_cache["proxied"]
        else:
            instance_id, target = split_proxy_path(raw_path(scope), scope["query_string"])
            if is_sleep_route(target):
                return False
            if route_cache is not None:
                route_cache["proxied"] = instance_id, target
        try:
            if (
                self._sleep is not None
                and scope["method"] in SAFE_METHODS
                and self._sleep.lease_sleeping(instance_id, only_reads=True)
            ):
                return False
            lease = self._leases.try_lease(instance_id)
        except ManagerError:
            return False
        return self.begin_leased(scope, body, channel, resume_as_task, instance_id, target, lease)

    def begin_leased(
        self,
        scope: Scope,
        body: bytes,
        channel: ResponseChannel,
        resume_as_task: ResumeAsTask,
        instance_id: str,
        target: bytes,
        lease: Lease | None,
        options: Callable[[], tuple[Leases, Retry, Prepare]] | None = None,
    ) -> bool:
        """As `begin`, with a lease if there is one; `options` returns `forward`'s arguments on resuming."""
        if lease is None:
            return False
        pool = self.pools.current(lease.instance_id, lease.endpoint)
        connection = pool.take_idle() if pool is not None else None
        if pool is None or connection is None:
            lease.release()
            return False
        call = self._call(scope, instance_id, target, len(body))
        call.assign(lease, self._metrics.of(lease.instance_id, lease.model_name))

        def resume(sent: FastExchange) -> None:
            async def application(scope: Scope, receive: Receive, send: Send) -> None:
                begun = (pool, lease, sent)
                leases, retry, prepare = options() if options is not None else (self._leases, None, None)
                exchange = self._exchange(call, leases, retry, receive, send, channel, begun, prepare)
                await self._serve(call, send, channel, exchange)

            resume_as_task(application)

        request = call.request
        call.metrics.bytes_in += len(body)
        exchange = FastExchange(connection, call, channel, resume)
        self._slow_timer.watch(exchange)
        connection.begin(
            exchange,
            request.encode(pool.identity_for(request.tenant_line), request.framed(body, is_last=True)),
            is_head_request=request.method == "HEAD",
            request_done=True,
        )
        return True

    def _call(self, scope: Scope, instance_id: str, target: bytes, length: int = 0) -> Call:
        """`length` of the body, if it has arrived."""
        started = time.perf_counter()
        route_cache: RouteCache | None = scope.get(ROUTE_CACHE)
        if route_cache is not None and (cached := route_cache.get("headers")) is not None:
            headers = cached.for_next(length)
        else:
            client = scope.get("client")
            client_host = client[0].encode() if client else b"unknown"
            headers = read_request_headers(scope["headers"], client_host, scope["scheme"].encode())
            if route_cache is not None and not find_header(scope["headers"], b"x-request-id"):
                route_cache["headers"] = headers
        request = UpstreamRequest(scope["method"], target, headers, started, caller_of(scope).tenant_line)
        return Call(scope, request, instance_id, self._metrics.unserved)

    async def _exchange(
        self,
        call: Call,
        leases: Leases,
        retry: Retry | None,
        receive: Receive,
        send: Send,
        channel: ResponseChannel | None,
        begun: tuple[UpstreamPool, Lease, FastExchange | None] | None = None,
        prepare: Prepare | None = None,
    ) -> int:
        """Acquire a lease and forward, or continue the exchange that has `begun`; returns the status."""
        client = channel or client_of(call.scope)
        while True:
            try:
                if begun is None:
                    begun, receive = await self._acquire(call, leases, receive)
                    if prepare is not None:
                        receive = await prepare(begun[1], call.request, receive)
                (pool, lease, sent), begun = begun, None
                pace = Pace(self._pace, lease, client)
                exchange = Exchange(call.request, pool, lease, call.metrics, receive, send, channel, pace)
                return await exchange.run(sent)
            except (UpstreamRefused, UpstreamBroken) as error:
                is_answered = isinstance(error, UpstreamBroken) and error.response_begun
                if retry is None or call.lease is None or is_answered:
                    raise
                replay = await retry(call.lease, receive)
                if replay is None:
                    raise
                call.log_failure(error)
                call.unassign()
                receive = replay

    async def _acquire(
        self, call: Call, leases: Leases, receive: Receive
    ) -> tuple[tuple[UpstreamPool, Lease, None], Receive]:
        """Acquire a lease, waiting if necessary; also returns a `receive` that misses no message."""
        lease = leases.try_lease(call.instance_id)
        had_to_wait = lease is None
        if lease is None:
            lease, receive = await lease_while_connected(leases, call.instance_id, receive)
        call.assign(lease, self._metrics.of(lease.instance_id, lease.model_name))
        if had_to_wait:
            call.request.queued_s = queued_s = time.perf_counter() - call.request.started
            call.metrics.queue_wait_s.observe(queued_s)
        return (self.pools.pool_for(lease.instance_id, lease.endpoint), lease, None), receive

    async def _serve(
        self, call: Call, send: Send, channel: ResponseChannel | None, forwarding: Awaitable[int]
    ) -> None:
        """Await `forwarding`, respond to its failure, and account for the call."""
        status = CLIENT_GONE
        try:
            status = await forwarding
            if status == _UNAVAILABLE and self._sleep is not None and call.lease is not None:
                self._sleep.check_sleep(call.lease.instance_id)
        except (ManagerError, UpstreamError, WrongBody) as exc:
            error = error_for(exc, is_admin=is_admin(call.scope))
            status = error.status
            if isinstance(exc, UpstreamError):
                call.log_failure(exc)
                self._note_failure(call)
            await send_error(send, error, call.request.target, call.request.headers.request_id)
        except ResponseCut as exc:
            # Returning without the last message makes any server close the connection without a clean end.
            if channel is not None:
                channel.abort()
            status = error_for(exc.error).status
            call.log_failure(exc.error)
        except ClientGone:
            pass
        finally:
            call.finish(status)

    def _note_failure(self, call: Call) -> None:
        """Make later requests avoid a node that could not be reached."""
        if self._peer_routes is not None and call.lease is not None and call.lease.endpoint.is_peer:
            self._peer_routes.failed(call.lease)
