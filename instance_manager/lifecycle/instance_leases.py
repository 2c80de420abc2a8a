"""Leases of one instance, by its id: the forwarding path's way in. Doesn't know how instances come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from instance_manager.errors import InstanceNotRunning, ShuttingDown, StartTooSlow
from instance_manager.lifecycle.failures import explain
from instance_manager.lifecycle.gate import Gate, Lease
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.supervisor import Supervisor
from instance_manager.types import Endpoint, InstanceState

_UP_ASLEEP = (InstanceState.RUNNING, InstanceState.SLEEPING)


@dataclass(frozen=True, slots=True)
class SleepingLease:
    """Stands for no room in an engine: it may be woken or ended meanwhile."""

    endpoint: Endpoint
    instance_id: str
    model_name: str
    is_wanted: bool = False

    def release(self) -> None:
        """There is nothing to give back."""


class InstanceLeases:
    """Over the manager's instances, which it reads alone.

    `find` raises InstanceNotFound. `on_wake_requested` is told when a request comes for an instance that sleeps.
    """

    def __init__(
        self,
        gates: Mapping[str, Gate],
        find: Callable[[str], Supervisor],
        on_wake_requested: Callable[[Instance], None],
        limit_s: float,
    ) -> None:
        self._gates = gates
        self._find = find
        self._on_wanted = on_wake_requested
        self._limit_s = limit_s  # that a request waits at most
        self.is_closed = False  # for good

    def try_lease(self, instance_id: str) -> Lease | None:
        """A lease now, or None if the caller may `wait_for_lease`. Check and grant are one act.

        Raises InstanceNotFound, InstanceNotRunning or ShuttingDown.
        """
        gate = self._gates.get(instance_id)
        if gate is not None:
            lease = gate.try_acquire()
            if lease is not None:
                return lease
        self._check_may_wait(instance_id)
        return None

    def lease_sleeping(self, instance_id: str, *, only_reads: bool) -> SleepingLease | None:
        """The way to an engine that sleeps, without waking it; None where it doesn't.

        `only_reads`: it may also be about to fall asleep, which the request then doesn't keep it from.
        Raises InstanceNotFound.
        """
        supervisor = self._find(instance_id)
        instance = supervisor.instance
        states = _UP_ASLEEP if only_reads else (InstanceState.SLEEPING,)
        if instance.state not in states or not supervisor.is_asleep:
            return None
        if self.is_closed or instance.port is None or instance.secrets is None:
            return None
        endpoint = instance.endpoint(instance.port, instance.secrets.api_key)
        return SleepingLease(endpoint, instance_id, instance.model_name)

    async def wait_for_lease(self, instance_id: str) -> Lease:
        """A lease, in order of arrival, once the instance is running and has room.

        Raises QueueFull, StartTooSlow, InstanceFailedToStart, InstanceNotRunning, InstanceNotFound or
        ShuttingDown. Leaving the queue by cancellation is safe at any moment.
        """
        self._check_may_wait(instance_id)
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._gates[instance_id].acquire()
        except TimeoutError:
            raise StartTooSlow(
                f"instance {instance_id!r} did not take the request within {self._limit_s:.0f} s; "
                "try again later",
                retry_after_s=5.0,
            ) from None

    def lease(self, instance_id: str) -> AbstractAsyncContextManager[Lease]:
        """`async with manager.lease(id) as lease:` around a whole request."""
        return self._lease(instance_id)

    @asynccontextmanager
    async def _lease(self, instance_id: str) -> AsyncIterator[Lease]:
        lease = self.try_lease(instance_id) or await self.wait_for_lease(instance_id)
        try:
            yield lease
        finally:
            lease.release()

    def _check_may_wait(self, instance_id: str) -> None:
        """Raise unless the instance is running or will be without anybody's further doing."""
        supervisor = self._find(instance_id)
        if self.is_closed:
            raise shutting_down()
        if not supervisor.wants_running:
            raise _not_running(supervisor.instance)
        if supervisor.is_asleep:
            self._on_wanted(supervisor.instance)


def shutting_down() -> ShuttingDown:
    """The refusal of everybody who comes too late."""
    return ShuttingDown("Berth is shutting down and takes nothing new", retry_after_s=5.0)


def _not_running(instance: Instance) -> InstanceNotRunning:
    failure, what = instance.failure, f"instance {instance.instance_id!r} is {instance.state}"
    why = instance.status_reason if failure is None else explain(failure)
    public_why = "" if failure is None else f" ({failure.failure_class})"
    then = "start it or create another"
    return InstanceNotRunning(f"{what} ({why}); {then}", public=f"{what}{public_why}; {then}")
