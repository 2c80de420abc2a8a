"""What clients can do to one instance: stop, start, restart, put to sleep, wake, delete it, read its log.

Cancelling a caller never cancels the work.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec, SleepFailed
from instance_manager.events import EventLog
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.registry import InstanceRegistry
from instance_manager.lifecycle.sleep_client import SLEEP_LEVELS
from instance_manager.memory.victims import EvictionAction, EvictionStep
from instance_manager.state.store_state import State


class InstanceActions(ABC):
    """The part of the manager that acts on one instance, by its id. All raise InstanceNotFound."""

    events: EventLog

    def __init__(self, config: ManagerConfig, registry: InstanceRegistry) -> None:
        self.config = config
        self._registry = registry
        self._find = registry.find

    @property
    @abstractmethod
    def state(self) -> State:
        """The stored state. Only while the manager runs."""

    @abstractmethod
    def _running_context(self) -> object:
        """Raises ShuttingDown, or RuntimeError outside `run`."""

    async def wait_ready(self, instance_id: str, timeout_s: float) -> Instance:
        """Return the instance once it is running, failed or stopped, or after `timeout_s` in any state."""
        supervisor = self._find(instance_id)
        instance = supervisor.instance
        try:
            async with asyncio.timeout(timeout_s):
                while not supervisor.is_settled:
                    await instance.wait_for_change()
        except TimeoutError:
            pass
        return instance

    async def stop(
        self,
        instance_id: str,
        *,
        force: bool = False,
        patient: bool = False,
        reason: str = "stopped by request",
    ) -> Instance:
        """Drain (not at all with `force`, without a limit if `patient`), then end the process group."""
        supervisor = self._find(instance_id)
        drain_timeout_s = math.inf if patient else self._drain_time(force)
        await supervisor.wait_ended(supervisor.request_stop(reason, drain_timeout_s=drain_timeout_s))
        await self.state.keeper.settled(instance_id)
        return supervisor.instance

    def start(self, instance_id: str, *, on_demand: bool = False) -> Instance:
        """Start a stopped or failed instance. Raises WrongState, NoCapacity or ShuttingDown.

        `on_demand`: no client asked for it, but a request needs it; its earlier failures still count.
        """
        self._running_context()
        supervisor = self._find(instance_id)
        supervisor.request_start(on_demand=on_demand)
        return supervisor.instance

    async def restart(self, instance_id: str) -> Instance:
        """Drain and end the current process and start another; returns in `starting`.

        Requests that arrive meanwhile wait for the new process. A stopped or failed instance is started.
        """
        self._running_context()
        supervisor = self._find(instance_id)
        if supervisor.instance.state.is_terminal and not supervisor.wants_running:
            supervisor.request_start()
        else:
            await supervisor.wait_ended(supervisor.request_restart())
        return supervisor.instance

    async def sleep(self, instance_id: str, level: int = 1) -> Instance:
        """Drain and free memory; returns once asleep. Raises InvalidSpec, WrongState or SleepFailed.

        The next request wakes the instance.
        """
        if level not in SLEEP_LEVELS:
            raise InvalidSpec(f"level must be 1 or 2, not {level}", param="level")
        supervisor = self._find(instance_id)
        supervisor.sleep.request_sleep(level)
        while supervisor.wants_running and not supervisor.is_settled:
            await supervisor.instance.wait_for_change()
        if supervisor.sleep.error is not None:
            raise SleepFailed(f"instance {instance_id!r} could not be put to sleep: {supervisor.sleep.error}")
        await self.state.keeper.settled(instance_id)
        return supervisor.instance

    async def evict(self, step: EvictionStep, *, reason: str, for_model: str | None = None) -> bool:
        """Execute the step; False: the victim stays, as it is in use by now or was pinned meanwhile.

        Leases end first, however long they take; without `must_drain` there are none. With `for_model`,
        `instance.evicted` is emitted. Raises what `stop` and `sleep` raise.
        """
        # No await from this check until the gate is closed: no request can slip in between.
        if not step.still_applies(self._find(step.instance_id).instance.resident()):
            return False
        if for_model is not None:
            data = {"action": step.action.name.lower(), "for": for_model}
            self.events.publish("instance.evicted", step.instance_id, data)
        if step.action is EvictionAction.STOP:
            await self.stop(step.instance_id, patient=True, reason=reason)
        else:
            await self.sleep(step.instance_id, int(step.action))
        return True

    def is_asleep(self, instance_id: str) -> bool:
        """Whether it sleeps or is about to, and can be woken. Raises InstanceNotFound."""
        supervisor = self._find(instance_id)
        return supervisor.wants_running and supervisor.sleep.is_asleep

    def is_being_deleted(self, instance_id: str) -> bool:
        """Whether it is about to be removed. Raises InstanceNotFound."""
        return self._find(instance_id).is_being_deleted

    async def wake(self, instance_id: str) -> Instance:
        """Wake the instance; returns once it serves or has failed. Raises WrongState."""
        self._running_context()
        supervisor = self._find(instance_id)
        supervisor.sleep.request_wake()
        while supervisor.wants_running and not supervisor.is_settled:
            await supervisor.instance.wait_for_change()
        return supervisor.instance

    def record_sleep(self, instance_id: str, level: int) -> None:
        """Its engine was put to sleep through its own route. Ignores an instance that no longer exists."""
        if (supervisor := self._registry.supervisors.get(instance_id)) is not None:
            supervisor.sleep.record_sleep(level)

    async def delete(self, instance_id: str, *, force: bool = False) -> None:
        """Stop the instance, then delete it with its log."""
        supervisor = self._find(instance_id)
        supervisor.request_stop("deleted by request", drain_timeout_s=self._drain_time(force), delete=True)
        while not supervisor.is_removed:
            await supervisor.instance.wait_for_change()
        await self.state.keeper.settled(instance_id)

    def _drain_time(self, force: bool) -> float:
        return 0.0 if force else self.config.drain_timeout_s

    def read_log(self, instance_id: str, tail: int) -> list[str]:
        """The last `tail` lines of its log, as far as they are in memory."""
        return self._find(instance_id).log.lines.tail(tail)

    def follow_log(self, instance_id: str, tail: int) -> AsyncIterator[str]:
        """The last `tail` lines, then new ones until the instance stops."""
        return self._find(instance_id).log.stream(tail)
