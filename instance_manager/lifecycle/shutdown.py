"""Ends all instances at once: each is asked synchronously, then awaited regardless of cancellation."""

from __future__ import annotations

import asyncio

from instance_manager.config import ManagerConfig, OnShutdown
from instance_manager.events import EventLog
from instance_manager.lifecycle.instance_leases import InstanceLeases
from instance_manager.lifecycle.manager_events import ManagerEvents
from instance_manager.lifecycle.registry import InstanceRegistry
from instance_manager.lifecycle.supervisor import Supervisor


class Shutdown:
    """Of one manager. Happens at most once, and is never taken back."""

    def __init__(
        self,
        config: ManagerConfig,
        registry: InstanceRegistry,
        leases: InstanceLeases,
        log: EventLog,
        events: ManagerEvents,
    ) -> None:
        self._config = config
        self._registry = registry
        self._leases = leases
        self._log = log
        self._events = events
        self._task: asyncio.Task[None] | None = None

    @property
    def has_begun(self) -> bool:
        return self._leases.is_closed

    def begin(self, *, drain_timeout_s: float | None = None) -> asyncio.Task[None]:
        """Refuse new and waiting requests, disconnect event and log followers, drain and end all engines.

        The returned task is done when all engines are gone. Drain time None = DRAIN_TIMEOUT, or that of an
        earlier call.
        """
        if self._task is None or drain_timeout_s is not None:
            drain_s = self._config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
            self._leases.close()
            self._registry.close()
            self._events.shutdown_begun()
            request = _request_detach if self._config.on_shutdown is OnShutdown.DETACH else _request_end
            ending = [(s, request(s, drain_s)) for s in self._registry.supervisors.values()]
            self._log.close()
            if self._task is None:
                self._task = asyncio.create_task(_wait_all_ended(ending), name="shutdown")
        return self._task


def _request_end(supervisor: Supervisor, drain_timeout_s: float) -> int:
    """Disconnect log followers, then drain, stop and delete the instance; the number of the run that ends."""
    supervisor.log.lines.close()
    return supervisor.request_stop(
        "Berth is shutting down", drain_timeout_s=drain_timeout_s, delete=True, shutting_down=True
    )


def _request_detach(supervisor: Supervisor, drain_timeout_s: float) -> int:
    """Disconnect log followers, then drain and detach the instance; the number of the run that ends."""
    supervisor.log.lines.close()
    return supervisor.request_detach(drain_timeout_s)


async def _wait_all_ended(ending: list[tuple[Supervisor, int]]) -> None:
    """Return when each of these runs is over."""
    await asyncio.gather(*(supervisor.wait_ended(run_number) for supervisor, run_number in ending))


async def wait_shielded(task: asyncio.Task[None]) -> None:
    """Wait for a task that bounds its own time; a cancellation meanwhile is raised only once it is done."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
