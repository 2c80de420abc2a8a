"""The connections to engines, a pool per engine process. No limit: limits belong to admission."""

from __future__ import annotations

import asyncio
import select
import time
from dataclasses import dataclass

from api.http.upstream_errors import UpstreamRefused, UpstreamTimeout
from api.proxy.upstream import UpstreamConnection
from instance_manager.types import Endpoint

# A connection that rested longer than this is looked at before use: its end may have come unnoticed.
_LOOK_AFTER_S = 0.05


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """Durations in seconds."""

    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 4.0  # below the 5 s after which uvicorn, under most engines, closes its side
    # A client that leaves cannot be heard while its upload stands still, so that must end some day.
    stall_timeout_s: float = 120.0  # without the engine taking any more of a request's body
    head_timeout_s: float | None = (
        None  # from the request's first byte to the response's head; None = as long as it takes
    )


class UpstreamPool:
    """Connections to one engine process; the one used last is used next."""

    def __init__(self, endpoint: Endpoint, options: UpstreamOptions) -> None:
        self.endpoint = endpoint
        self.options = options
        self._whom = "Berth" if endpoint.is_peer else "the engine"
        # Host and Authorization, as every request to this engine carries them.
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
        """The lines of a head that are this engine's affair; where it can tell tenants apart, whose it is."""
        return self._identity + tenant_line if self.endpoint.tells_tenants_apart else self._identity

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def take(self) -> UpstreamConnection | None:
        """An idle connection that is still good, or None."""
        while self._idle:
            connection, _ = self._idle.popitem()
            rested = time.monotonic() - connection.idle_since
            if rested < _LOOK_AFTER_S:
                if not connection.is_closed:
                    return connection
            elif (
                rested < self.options.idle_timeout_s
                and not connection.is_closed
                and not _has_news(connection)
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
                f"no connection to {self._whom} at {host}:{port} within {timeout_s:g} s"
            ) from exc
        except OSError as exc:
            raise UpstreamRefused(
                f"cannot connect to {self._whom} at {host}:{port}: {exc.strerror or exc}"
            ) from exc
        if connection.is_closed:  # lost again before we were told of it
            raise UpstreamRefused(f"{self._whom} at {host}:{port} closed a new connection at once")
        return connection

    def close(self) -> None:
        """Close what is idle now, and what is busy as soon as its exchange ends."""
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
        if self._is_closed:
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
        """Connections open, idle and busy, to processes that are current."""
        return sum(pool.num_open for pool in self._pools.values())

    def current(self, instance_id: str, endpoint: Endpoint) -> UpstreamPool | None:
        """The instance's pool if there is one for this very process of it."""
        pool = self._pools.get(instance_id)
        if pool is None or not (pool.endpoint is endpoint or pool.endpoint == endpoint):
            return None
        return pool

    def pool_for(self, instance_id: str, endpoint: Endpoint) -> UpstreamPool:
        """The instance's pool for this very process of it."""
        pool = self._pools.get(instance_id)
        if pool is not None:
            if pool.endpoint == endpoint:
                return pool
            if pool.endpoint.generation > endpoint.generation:
                # A lease from before a restart: its process is past, and so is whatever connects to it.
                raise UpstreamRefused("the engine was restarted before the request could be sent")
            pool.close()
        pool = self._pools[instance_id] = UpstreamPool(endpoint, self._options)
        return pool

    def forget(self, instance_id: str) -> None:
        """The instance's process has ended or is ending: close what is idle."""
        pool = self._pools.pop(instance_id, None)
        if pool is not None:
            pool.close()

    def close(self) -> None:
        for instance_id in list(self._pools):
            self.forget(instance_id)


def _has_news(connection: UpstreamConnection) -> bool:
    """Whether the socket has something to read: on an idle connection that is its end, or garbage."""
    descriptor = connection.fileno()
    if descriptor < 0:
        return True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poller.poll(0))
