"""Connections to engines, one pool per engine process. Unlimited: limits belong to admission."""

from __future__ import annotations

import asyncio
import select
import time
from dataclasses import dataclass

from api.http.upstream_errors import UpstreamRefused, UpstreamTimeout
from api.proxy.upstream import UpstreamConnection
from instance_manager.types import Endpoint

# A connection that was idle for longer is polled before reuse: the engine may have closed it.
_POLL_AFTER_S = 0.05


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """Durations in seconds."""

    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 4.0  # below the 5 s after which uvicorn, under most engines, closes its side
    # A client's disconnect cannot be noticed while its upload is blocked, so that needs a limit.
    stall_timeout_s: float = 120.0  # without the engine reading any more of a request's body
    head_timeout_s: float | None = None  # from the request's first byte to the response head; None = no limit


class UpstreamPool:
    """Connections to one engine process; the most recently used one is reused first."""

    def __init__(self, endpoint: Endpoint, options: UpstreamOptions) -> None:
        self.endpoint = endpoint
        self.options = options
        self._peer = "the Berth node" if endpoint.is_peer else "the engine"
        # Host and Authorization, the same for every request to this engine.
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        identity = f"host: {host}:{endpoint.port}\r\n"
        if endpoint.api_key:
            identity += f"authorization: Bearer {endpoint.api_key}\r\n"
        self._identity = identity.encode("latin-1")
        self.num_open = 0
        self._idle: dict[UpstreamConnection, None] = {}  # in order of last use
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        where = f"{self.endpoint.host}:{self.endpoint.port}"
        return f"<UpstreamPool {where} open={self.num_open} idle={self.num_idle}>"

    def identity_for(self, tenant_line: bytes) -> bytes:
        """The head's lines specific to this engine, with the tenant if it supports tenants."""
        return self._identity + tenant_line if self.endpoint.isolates_tenants else self._identity

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def take_idle(self) -> UpstreamConnection | None:
        """An idle connection that is still usable, or None."""
        while self._idle:
            connection, _ = self._idle.popitem()
            idle_s = time.monotonic() - connection.idle_since
            if idle_s < _POLL_AFTER_S:
                if not connection.is_closed:
                    return connection
            elif (
                idle_s < self.options.idle_timeout_s
                and not connection.is_closed
                and not _is_readable(connection)
            ):
                return connection
            connection.abort()
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection. Raises UpstreamRefused, UpstreamTimeout."""
        host, port = self.endpoint.host, self.endpoint.port
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.options.connect_timeout_s):
                _, connection = await loop.create_connection(lambda: UpstreamConnection(self), host, port)
        except TimeoutError as exc:
            timeout_s = self.options.connect_timeout_s
            raise UpstreamTimeout(
                f"could not connect to {self._peer} at {host}:{port} within {timeout_s:g} s"
            ) from exc
        except OSError as exc:
            raise UpstreamRefused(
                f"cannot connect to {self._peer} at {host}:{port}: {exc.strerror or exc}"
            ) from exc
        if connection.is_closed:  # already lost
            raise UpstreamRefused(f"{self._peer} at {host}:{port} closed a new connection at once")
        return connection

    def close(self) -> None:
        """Close idle connections now, and busy ones as soon as their exchange ends."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self._idle):
            connection.abort()
        self._idle.clear()

    # ConnectionOwner

    def connection_opened(self, connection: UpstreamConnection) -> None:
        self.num_open += 1

    def connection_idle(self, connection: UpstreamConnection) -> None:
        if self._is_closed or not self.endpoint.keeps_connections:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle[connection] = None
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(
                self.options.idle_timeout_s, self._close_expired
            )

    def connection_lost(self, connection: UpstreamConnection) -> None:
        self.num_open -= 1
        self._idle.pop(connection, None)

    def _close_expired(self) -> None:
        self._sweep = None
        now = time.monotonic()
        for connection in list(self._idle):
            left_s = connection.idle_since + self.options.idle_timeout_s - now
            if left_s > 0:
                self._sweep = asyncio.get_running_loop().call_later(left_s, self._close_expired)
                return
            del self._idle[connection]
            connection.abort()


class UpstreamPools:
    """One pool per instance; a new process of an instance (a higher generation) gets a new pool."""

    def __init__(self, options: UpstreamOptions) -> None:
        self._options = options
        self._pools: dict[str, UpstreamPool] = {}

    def __len__(self) -> int:
        return len(self._pools)

    @property
    def num_open(self) -> int:
        """Open connections, idle and busy, to current processes."""
        return sum(pool.num_open for pool in self._pools.values())

    def current(self, instance_id: str, endpoint: Endpoint) -> UpstreamPool | None:
        """The instance's pool if there is one for this generation of its process."""
        pool = self._pools.get(instance_id)
        if pool is None or not (pool.endpoint is endpoint or pool.endpoint == endpoint):
            return None
        return pool

    def pool_for(self, instance_id: str, endpoint: Endpoint) -> UpstreamPool:
        """The instance's pool for this generation of its process. Raises UpstreamRefused for a past one."""
        pool = self._pools.get(instance_id)
        if pool is not None:
            if pool.endpoint == endpoint:
                return pool
            if pool.endpoint.generation > endpoint.generation:
                # The lease is from before a restart: its process has ended.
                raise UpstreamRefused("the engine was restarted before the request could be sent; retry it")
            pool.close()
        pool = self._pools[instance_id] = UpstreamPool(endpoint, self._options)
        return pool

    def forget(self, instance_id: str) -> None:
        """The instance's process has ended or is ending: close idle connections."""
        pool = self._pools.pop(instance_id, None)
        if pool is not None:
            pool.close()

    def close(self) -> None:
        for instance_id in list(self._pools):
            self.forget(instance_id)


def _is_readable(connection: UpstreamConnection) -> bool:
    """Whether the socket is readable: on an idle connection that means its end, or garbage."""
    descriptor = connection.fileno()
    if descriptor < 0:
        return True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poller.poll(0))
