"""Leases of instances by id, for the forwarding path. Neither creates nor removes instances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from instance_manager.errors import InstanceNotRunning, ShuttingDown, StartTooSlow
from instance_manager.lifecycle.failures import explain
from instance_manager.lifecycle.gate import Gate, Lease
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.manager_events import ManagerEvents
from instance_manager.lifecycle.supervisor import Supervisor
from instance_manager.types import Endpoint, InstanceState

_RUNNING_OR_SLEEPING = (InstanceState.RUNNING, InstanceState.SLEEPING)


@dataclass(frozen=True, slots=True)
class SleepingLease:
    """Access to a sleeping engine. Not counted as in flight: the engine may be woken or stopped meanwhile."""

    endpoint: Endpoint
    instance_id: str
    model_name: str
    is_wanted: bool = False

    def release(self) -> None:
        """Nothing to return."""


class InstanceLeases:
    """Reads the manager's instances and changes none.

    `find` raises InstanceNotFound.
    """

    def __init__(
        self,
        gates: Mapping[str, Gate],
        find: Callable[[str], Supervisor],
        events: ManagerEvents,
        max_wait_s: float,
    ) -> None:
        self._gates = gates
        self._find = find
        self._events = events
        self._max_wait_s = max_wait_s
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """Grant no more leases, ever."""
        self._is_closed = True

    def try_lease(self, instance_id: str) -> Lease | None:
        """A lease now, or None if the caller may `wait_for_lease`. There is no await between check and grant.

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
        """Access to a sleeping engine without waking it; None if it isn't asleep.

        With `only_reads`, also if it is about to sleep, which the request doesn't delay. Raises
        InstanceNotFound.
        """
        supervisor = self._find(instance_id)
        instance = supervisor.instance
        states = _RUNNING_OR_SLEEPING if only_reads else (InstanceState.SLEEPING,)
        if instance.state not in states or not supervisor.sleep.is_asleep:
            return None
        if self._is_closed or instance.port is None or instance.secrets is None:
            return None
        endpoint = instance.endpoint(instance.port, instance.secrets.api_key)
        return SleepingLease(endpoint, instance_id, instance.model_name)

    async def wait_for_lease(self, instance_id: str) -> Lease:
        """A lease, in order of arrival, once the instance is running and below its limit.

        Raises QueueFull, StartTooSlow, InstanceFailedToStart, InstanceNotRunning, InstanceNotFound or
        ShuttingDown. Can be cancelled safely at any time.
        """
        self._check_may_wait(instance_id)
        try:
            async with asyncio.timeout(self._max_wait_s):
                return await self._gates[instance_id].acquire()
        except TimeoutError:
            raise StartTooSlow(
                f"instance {instance_id!r} did not take the request within {self._max_wait_s:.0f} s; "
                "try again later",
                retry_after_s=5.0,
            ) from None

    def lease(self, instance_id: str) -> AbstractAsyncContextManager[Lease]:
        """Use `async with manager.lease(id) as lease:` around a whole request."""
        return self._lease(instance_id)

    @asynccontextmanager
    async def _lease(self, instance_id: str) -> AsyncIterator[Lease]:
        lease = self.try_lease(instance_id) or await self.wait_for_lease(instance_id)
        try:
            yield lease
        finally:
            lease.release()

    def _check_may_wait(self, instance_id: str) -> None:
        """Raise unless the instance is running or will be without further requests."""
        supervisor = self._find(instance_id)
        if self._is_closed:
            raise shutting_down()
        if not supervisor.wants_running:
            raise _not_running(supervisor.instance)
        if supervisor.sleep.is_asleep and self._events.may_wake(supervisor.instance):
            supervisor.sleep.request_wake()


def shutting_down() -> ShuttingDown:
    """The error for requests that arrive during a shutdown."""
    return ShuttingDown("Berth is shutting down and accepts no new requests", retry_after_s=5.0)


def _not_running(instance: Instance) -> InstanceNotRunning:
    failure, status = instance.failure, f"instance {instance.instance_id!r} is {instance.state}"
    reason = instance.status_reason if failure is None else explain(failure)
    public_reason = "" if failure is None else f" ({failure.failure_class})"
    advice = "start it or create another"
    return InstanceNotRunning(f"{status} ({reason}); {advice}", public=f"{status}{public_reason}; {advice}")
