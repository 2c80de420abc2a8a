"""Expires idle instances and deletes the oldest that have ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from instance_manager.events import EventLog
from instance_manager.lifecycle.supervisor import Supervisor
from instance_manager.memory.victims import Resident, expired, next_expiry_check
from instance_manager.types import Event, ExpireAction, InstanceState

logger = logging.getLogger("berth.manager")

_RETRY_AFTER_ERROR_S = 1.0
_MAX_ENDED = 100  # unnamed instances whose records are kept after their end


class ExpiryLoop:
    """A task and an event listener. Requests changes from supervisors and makes none itself."""

    def __init__(
        self,
        supervisors: Mapping[str, Supervisor],
        events: EventLog,
        clock: Callable[[], float],
        *,
        expire_action: ExpireAction = ExpireAction.STOP,
    ) -> None:
        self._action = expire_action
        self._supervisors = supervisors
        self._events = events
        self._clock = clock
        self._wake = asyncio.Event()

    def start(self, tasks: asyncio.TaskGroup) -> Callable[[], None]:
        """Start in `tasks`; the returned function stops it."""
        unsubscribe = self._events.add_listener(self._on_event)
        task = tasks.create_task(self._expire_idle(), name="expiry")

        def stop() -> None:
            unsubscribe()
            task.cancel()

        return stop

    def _on_event(self, event: Event) -> None:
        if event.type == "instance.updated" or event.data.get("status") == InstanceState.RUNNING:
            self._wake.set()  # a deadline may be earlier now
        elif event.data.get("status") in (InstanceState.STOPPED, InstanceState.FAILED):
            self._delete_oldest_ended()

    async def _expire_idle(self) -> None:
        while True:
            self._wake.clear()
            try:
                wait_s = self._expire_due()
            except Exception:
                logger.exception("expiry failed; trying again in %.0f s", _RETRY_AFTER_ERROR_S)
                wait_s = _RETRY_AFTER_ERROR_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _expire_due(self) -> float | None:
        """Expire what is due; seconds until the next check. No await between checking and closing a gate."""
        now = self._clock()
        for victim in expired(self._residents(), now):
            reason = f"idle for {now - victim.last_used:.1f} s"
            action = self._expire(self._supervisors[victim.instance_id], reason)
            self._events.publish(
                "instance.expired", victim.instance_id, {"reason": reason, "action": action.value}
            )
        check_at = next_expiry_check(self._residents(), now)
        return None if check_at is None else max(0.0, check_at - now)

    def _residents(self) -> list[Resident]:
        return [s.instance.resident() for s in self._supervisors.values() if s.instance.gate.is_open]

    def _expire(self, supervisor: Supervisor, reason: str) -> ExpireAction:
        """Stop the instance, or put it to sleep if that is its action and it has a sleep mode."""
        instance = supervisor.instance
        action = instance.spec.expire_action or self._action
        if action is not ExpireAction.STOP and instance.plan.sleep_style is not None:
            supervisor.sleep.request_sleep(1 if action is ExpireAction.SLEEP1 else 2)
            return action
        supervisor.request_stop(reason, drain_timeout_s=0.0)
        return ExpireAction.STOP

    def _delete_oldest_ended(self) -> None:
        """Bound the number of ended instances; named ones stay until a client deletes them."""
        ended = [
            s
            for s in self._supervisors.values()
            if s.instance.state.is_terminal and s.is_settled and s.instance.spec.name is None
        ]
        for supervisor in ended[: max(0, len(ended) - _MAX_ENDED)]:
            supervisor.request_stop("removed: too many ended instances", drain_timeout_s=0.0, delete=True)
