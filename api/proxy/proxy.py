"""The data plane: `ANY /proxy/{instance_id}/{path}` as a raw ASGI application, HTTP and WebSocket.

Acquires a lease, or waits for one in the manager's queue, and forwards. Knows nothing of models and bodies.
"""

from __future__ import annotations

import time
from functools import partial

from api.access.engine_routes import SAFE_METHODS
from api.access.keys import caller_of, is_admin
from api.http.asgi import Receive, Scope, Send
from api.http.client_errors import CLIENT_GONE, ClientGone, WrongBody
from api.http.dispatch import raw_path, split_proxy_path
from api.http.errors import RequestRefused, error_for
from api.http.respond import send_error
from api.http.response_channel import (
    Handler,
    ResponseChannel,
    ResumeAsTask,
    channel_of,
    client_of,
    without_channel,
)
from api.http.route import RoutedApp
from api.http.upstream_errors import UpstreamBroken, UpstreamError, UpstreamRefused
from api.proxy.call import Call
from api.proxy.exchange import Exchange, ResponseCut
from api.proxy.fast_exchange import FastExchange, SlowRequestTimer
from api.proxy.pace import Pace, PaceRules
from api.proxy.peer_routes import PeerRoutes
from api.proxy.sleep_routes import SleepCall, SleepNotices, SleepTarget, is_sleep_route
from api.proxy.target import InstanceTarget, Leases, Target, UpstreamLease, acquire_while_connected
from api.proxy.upstream_pool import UpstreamOptions, UpstreamPool, UpstreamPools
from api.proxy.upstream_request import HeadersOfHead, UpstreamRequest
from api.proxy.websocket import forward_websocket
from instance_manager.errors import ManagerError
from instance_manager.metrics.proxy import ProxyMetrics

_UNAVAILABLE = 503  # status of a sleeping engine


class DataPlane(RoutedApp):
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

    def route(self, scope: Scope) -> Handler:
        instance_id, path = split_proxy_path(raw_path(scope), scope["query_string"])
        target = InstanceTarget(self._leases, instance_id, path)
        begin = None if is_sleep_route(path) else partial(self._begin, target, HeadersOfHead())
        return Handler(partial(self._serve_instance, target), begin)

    async def _serve_instance(
        self, target: InstanceTarget, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Forward to an instance of this node, or of another one if that has it."""
        instance_id, path = target.name, target.path
        peer = None if self._peer_routes is None else self._peer_routes.to_instance(scope, instance_id)
        if scope["type"] == "websocket":
            await self.forward_any(scope, receive, send, peer or target)
        elif self._sleep is not None and peer is None and _wakes_none(scope, path):
            asleep = SleepTarget(self._sleep, self._leases, instance_id, path, scope["method"])
            await self._forward_to_sleeping(self._sleep, scope, receive, send, asleep)
        else:
            await self.forward(scope, receive, send, peer or target)

    async def _forward_to_sleeping(
        self, notices: SleepNotices, scope: Scope, receive: Receive, send: Send, target: SleepTarget
    ) -> None:
        """The response to a sleep route goes out by `send`, where its status is noted."""
        if not is_sleep_route(target.path):
            await self.forward(scope, receive, send, target)
            return
        call = SleepCall(notices, target, send)
        try:
            await self.forward(without_channel(scope), receive, call.send, target)
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

    async def forward_any(self, scope: Scope, receive: Receive, send: Send, target: Target) -> None:
        """Forward an HTTP request or a WebSocket to its target."""
        if scope["type"] == "websocket":
            await forward_websocket(target, self._metrics, scope, receive, send, self._pace.stall_s)
        else:
            await self.forward(scope, receive, send, target)

    async def forward(self, scope: Scope, receive: Receive, send: Send, target: Target) -> None:
        """Forward one HTTP request to its target."""
        call = self._call(scope, target, HeadersOfHead())
        if target.headers:
            call.request.headers = call.request.headers.with_more(target.headers)
        await self._serve(call, receive, send, channel_of(scope))

    def _begin(
        self,
        target: InstanceTarget,
        headers: HeadersOfHead,
        scope: Scope,
        body: bytes,
        channel: ResponseChannel,
        resume_as_task: ResumeAsTask,
    ) -> bool:
        """Send a request that has arrived whole without a task, if nothing has to be awaited.

        False: nothing was done, call the application. True: the response goes out by `channel`, or
        `resume_as_task` is called with an application that continues the request.
        """
        try:
            if (
                self._sleep is not None
                and scope["method"] in SAFE_METHODS
                and self._sleep.lease_sleeping(target.name, only_reads=True)
            ):
                return False
            lease = target.try_acquire()
        except ManagerError:
            return False
        return lease is not None and self.begin_leased(
            target, lease, headers, scope, body, channel, resume_as_task
        )

    def begin_leased(
        self,
        target: Target,
        lease: UpstreamLease,
        headers: HeadersOfHead,
        scope: Scope,
        body: bytes,
        channel: ResponseChannel,
        resume_as_task: ResumeAsTask,
    ) -> bool:
        """As `begin`, with a lease of the target, which adds no headers; False: the lease is released."""
        pool = self.pools.current(lease.instance_id, lease.endpoint)
        connection = pool.take_idle() if pool is not None else None
        if pool is None or connection is None:
            lease.release()
            return False
        call = self._call(scope, target, headers, len(body))
        call.assign(lease, self._metrics.of(lease.instance_id, lease.model_name))

        def resume(sent: FastExchange) -> None:
            async def application(scope: Scope, receive: Receive, send: Send) -> None:
                await self._serve(call, receive, send, channel, (pool, lease, sent))

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

    def _call(self, scope: Scope, target: Target, headers: HeadersOfHead, length: int = 0) -> Call:
        """`length` of the body, if it has arrived."""
        started = time.perf_counter()
        read, tenant_line = headers.of(scope, length), caller_of(scope).tenant_line
        request = UpstreamRequest(scope["method"], target.path, read, started, tenant_line)
        return Call(scope, request, target, self._metrics.unserved)

    async def _serve(
        self,
        call: Call,
        receive: Receive,
        send: Send,
        channel: ResponseChannel | None,
        begun: tuple[UpstreamPool, UpstreamLease, FastExchange] | None = None,
    ) -> None:
        """Forward, or continue what has `begun`; respond to a failure, and account for the call."""
        status = CLIENT_GONE
        try:
            status = await self._exchange(call, receive, send, channel, begun)
            if status == _UNAVAILABLE and self._sleep is not None and call.lease is not None:
                self._sleep.check_sleep(call.lease.instance_id)
        except (ManagerError, UpstreamError, WrongBody) as exc:
            error = error_for(exc, is_admin=is_admin(call.scope))
            status = error.status
            if isinstance(exc, UpstreamError):
                call.log_failure(exc)
                call.target.failed()
            await send_error(send, error, call.target.path, call.request.headers.request_id)
        except RequestRefused as refused:
            status = refused.error.status
            await send_error(send, refused.error, call.target.path, call.request.headers.request_id)
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

    async def _exchange(
        self,
        call: Call,
        receive: Receive,
        send: Send,
        channel: ResponseChannel | None,
        begun: tuple[UpstreamPool, UpstreamLease, FastExchange] | None,
    ) -> int:
        """Acquire a lease unless there is one, and forward; returns the status."""
        client = channel or client_of(call.scope)
        while True:
            try:
                sent: FastExchange | None = None
                if begun is not None:
                    pool, lease, sent = begun
                else:
                    pool, lease, receive = await self._acquire(call, receive)
                pace = Pace(self._pace, lease, client)
                if (translation := call.target.translation) is not None:
                    respond = partial(_exchange_by, call, pool, lease, receive, pace)
                    return await translation.run(respond, send, call.request.headers.request_id)
                exchange = Exchange(call.request, pool, lease, call.metrics, receive, send, channel, pace)
                return await exchange.run(sent)
            except (UpstreamRefused, UpstreamBroken) as error:
                is_answered = isinstance(error, UpstreamBroken) and error.response_begun
                if call.lease is None or is_answered or not await call.target.may_retry(call.lease):
                    raise
                call.log_failure(error)
                call.unassign()
                begun = None

    async def _acquire(self, call: Call, receive: Receive) -> tuple[UpstreamPool, UpstreamLease, Receive]:
        """Acquire a lease, waiting if necessary; also returns a `receive` for its engine's body."""
        lease = call.target.try_acquire()
        had_to_wait = lease is None
        if lease is None:
            lease, receive = await acquire_while_connected(call.target, receive)
        call.assign(lease, self._metrics.of(lease.instance_id, lease.model_name))
        if had_to_wait:
            call.request.queued_s = queued_s = time.perf_counter() - call.request.started
            call.metrics.queue_wait_s.observe(queued_s)
        pool = self.pools.pool_for(lease.instance_id, lease.endpoint)
        return pool, lease, await call.target.prepare(lease, call.request, receive)


async def _exchange_by(
    call: Call, pool: UpstreamPool, lease: UpstreamLease, receive: Receive, pace: Pace, send: Send
) -> int:
    """An exchange whose response goes out by `send` alone."""
    return await Exchange(call.request, pool, lease, call.metrics, receive, send, None, pace).run()


def _wakes_none(scope: Scope, path: bytes) -> bool:
    """Whether a request does not wake a sleeping engine."""
    return is_sleep_route(path) or scope["method"] in SAFE_METHODS
