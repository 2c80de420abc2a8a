"""What the data plane needs of the instance manager, and nothing more."""

from __future__ import annotations

from typing import Protocol

from instance_manager.types import Endpoint


class Lease(Protocol):
    """The right to send one request to an engine, granted together with the check that it is running.

    While a lease is out its engine is neither expired nor put to sleep, and a stop drains first.
    """

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def instance_id(self) -> str: ...
    @property
    def model_name(self) -> str: ...

    def release(self) -> None:
        """Give it back; more than once does no harm."""


class Leases(Protocol):
    """Grants leases."""

    def try_lease(self, instance_id: str) -> Lease | None:
        """A lease at once, or None where the instance is on its way to running and the request must wait.

        Raises InstanceNotFound, InstanceNotRunning, QueueFull or ShuttingDown.
        """

    async def wait_for_lease(self, instance_id: str) -> Lease:
        """A lease as soon as there is one, in order of arrival. To be cancelled is to leave the queue.

        Raises QueueFull, InstanceFailedToStart, StartTooSlow and what `try_lease` raises.
        """
