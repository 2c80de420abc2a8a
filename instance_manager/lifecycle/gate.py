"""Which requests may use an engine now, which wait, and in which order.

A gate grants leases synchronously: no await lies between the check and the grant, so no request can slip in
after the gate has closed. Knows nothing of processes or states: its owner opens and closes it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from instance_manager.errors import ManagerError, QueueFull
from instance_manager.types import Endpoint


class GateObserver(Protocol):
    """Has requests that wait elsewhere for this gate's leases."""

    def capacity_freed(self, gate: Gate) -> None:
        """A lease is free, and no request waits at the gate itself. Called after each request."""

    def is_sought(self, gate: Gate) -> bool:
        """Whether such a request waits."""


class Lease:
    """The right to send one request to an engine; hold it until the last byte of the response."""

    __slots__ = ("_gate", "endpoint", "instance_id", "model_name")

    def __init__(self, gate: Gate, endpoint: Endpoint) -> None:
        self._gate: Gate | None = gate
        self.endpoint = endpoint
        self.instance_id = gate.instance_id
        self.model_name = gate.model_name

    @property
    def is_wanted(self) -> bool:
        """Whether another request waits for a lease like this one."""
        return self._gate is not None and self._gate.is_wanted

    def release(self) -> None:
        """Return the lease; further calls do nothing."""
        gate = self._gate
        if gate is not None:
            self._gate = None
            gate._return_lease()

    def __repr__(self) -> str:
        held = "held" if self._gate is not None else "released"
        return f"<Lease {self.instance_id} generation {self.endpoint.generation} {held}>"


class Gate:
    """Leases and waiters of one instance. Times are those of `clock` (monotonic seconds)."""

    __slots__ = (
        "_clock",
        "_drained",
        "_endpoint",
        "_max_in_flight",
        "_max_queue",
        "_observer",
        "_waiters",
        "in_flight",
        "instance_id",
        "last_active",
        "model_name",
    )

    def __init__(
        self,
        instance_id: str,
        model_name: str,
        *,
        max_in_flight: int,
        max_queue: int,
        clock: Callable[[], float],
        observer: GateObserver | None = None,
    ) -> None:
        self.instance_id = instance_id
        self.model_name = model_name
        self.in_flight = 0
        self.last_active = clock()
        self._endpoint: Endpoint | None = None  # None = closed
        self._max_in_flight = max_in_flight  # 0 = no limit
        self._max_queue = max_queue
        self._clock = clock
        self._waiters: deque[asyncio.Future[Lease]] = deque()
        self._drained: asyncio.Future[None] | None = None
        self._observer = observer

    @property
    def is_open(self) -> bool:
        return self._endpoint is not None

    @property
    def endpoint(self) -> Endpoint | None:
        """Where the engine listens, for callers without a lease; None while the gate is closed."""
        return self._endpoint

    @property
    def is_wanted(self) -> bool:
        """Whether a request waits for a lease."""
        return bool(self._waiters) or (self._observer is not None and self._observer.is_sought(self))

    @property
    def queued(self) -> int:
        """Number of requests that wait for a lease."""
        return len(self._waiters)

    def try_acquire(self) -> Lease | None:
        """A lease if the gate is open, below its limit, and no earlier request waits."""
        endpoint = self._endpoint
        if (
            endpoint is None
            or self._waiters
            or (self._max_in_flight and self.in_flight >= self._max_in_flight)
        ):
            return None
        self.in_flight += 1
        self.last_active = self._clock()
        return Lease(self, endpoint)

    async def acquire(self) -> Lease:
        """A lease, in order of arrival. Raises QueueFull, or the error given to `reject`."""
        lease = self.try_acquire()
        if lease is not None:
            return lease
        if len(self._waiters) >= self._max_queue:
            raise QueueFull(
                f"{len(self._waiters)} requests already wait for instance {self.instance_id!r}, "
                "as many as MAX_QUEUE allows; try again later",
                retry_after_s=1.0,
            )
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # If the lease was granted just before the cancellation, only we can release it.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    @property
    def last_use(self) -> float:
        """When a lease was last out: now, if one is."""
        return self._clock() if self.in_flight else self.last_active

    def open(self, endpoint: Endpoint, *, idle_since: float | None = None) -> None:
        """Accept requests for this endpoint, waiting ones first. The idle time starts, or started before."""
        self._endpoint = endpoint
        self.last_active = self._clock() if idle_since is None else idle_since
        self._grant_waiting()

    def close(self) -> None:
        """Grant no more leases; granted ones stay valid, waiters keep waiting."""
        self._endpoint = None

    def reject(self, make_error: Callable[[], ManagerError]) -> None:
        """Fail all waiting requests, each with its own error."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(make_error())

    def drained(self) -> asyncio.Future[None]:
        """A future that is done once no lease is out. It is shared: don't cancel it."""
        if self._drained is None or self._drained.done():
            self._drained = asyncio.get_running_loop().create_future()
            if not self.in_flight:
                self._drained.set_result(None)
        return self._drained

    def _grant_waiting(self) -> None:
        endpoint = self._endpoint
        while (
            endpoint is not None
            and self._waiters
            and not (self._max_in_flight and self.in_flight >= self._max_in_flight)
        ):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(Lease(self, endpoint))
        if self._observer is not None and endpoint is not None and not self._waiters:
            self._observer.capacity_freed(self)

    def _return_lease(self) -> None:
        self.in_flight -= 1
        self.last_active = self._clock()
        if self._waiters or self._observer is not None:
            self._grant_waiting()
        if not self.in_flight and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
