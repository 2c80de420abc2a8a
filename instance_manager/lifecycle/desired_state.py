"""The state that callers request for an instance; its supervisor brings the actual state in line with it."""

from __future__ import annotations

import asyncio
from enum import Enum, auto

from instance_manager.errors import WrongState
from instance_manager.lifecycle.instance import Instance


class DesiredPhase(Enum):
    RUNNING = auto()
    STOPPED = auto()
    DELETED = auto()
    DETACHED = auto()  # the engine keeps running, and the next Berth process adopts it


class DesiredState:
    """Written synchronously. Each `notify` resolves `changed` and replaces it with a new future."""

    def __init__(self) -> None:
        self.phase = DesiredPhase.RUNNING
        self.run_number = 1  # of the run that is wanted; see the supervisor
        self.sleep_level = 0  # 0 = awake
        self.reason = ""  # why the current run is to end
        self.drain_timeout_s = 0.0  # for requests in flight when it ends
        self.sleep_error: str | None = None  # why it isn't asleep although that was requested
        self.changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def notify(self) -> None:
        """Wake everything that waits for `changed`."""
        self.changed.set_result(None)
        self.changed = asyncio.get_running_loop().create_future()

    def request_new_run(self) -> None:
        self.phase = DesiredPhase.RUNNING
        self.run_number += 1
        self.notify()

    def stop(self, reason: str, drain_timeout_s: float, *, delete: bool) -> None:
        """A repeated stop can only shorten the drain time. The caller calls `notify`."""
        if self.phase is DesiredPhase.RUNNING:
            self.reason = reason
            self.drain_timeout_s = drain_timeout_s
            self.phase = DesiredPhase.STOPPED
        self.drain_timeout_s = min(self.drain_timeout_s, drain_timeout_s)
        if delete:
            self.phase = DesiredPhase.DELETED

    def detach(self, drain_timeout_s: float) -> None:
        """As `stop`, but a running engine is left alone. An instance that is being stopped is stopped."""
        if self.phase is DesiredPhase.RUNNING:
            self.drain_timeout_s = drain_timeout_s
            self.phase = DesiredPhase.DETACHED
        elif self.phase is DesiredPhase.STOPPED:
            self.phase = DesiredPhase.DELETED  # from the registry; the stored record stays
        self.drain_timeout_s = min(self.drain_timeout_s, drain_timeout_s)


def wrong_state(instance: Instance, desired: DesiredState, action: str) -> WrongState:
    status = "being deleted" if desired.phase is DesiredPhase.DELETED else instance.state.value
    return WrongState(f"instance {instance.instance_id!r} can't {action}: it is {status}")
