"""What the instance manager tells the part that queues requests by model, and asks it.

The manager works without such a part, and knows nothing else of it.
"""

from __future__ import annotations

from typing import Protocol

from instance_manager.lifecycle.gate import Gate, GateObserver
from instance_manager.lifecycle.instance import Instance


class ManagerObserver(GateObserver, Protocol):
    """The fleet. Each method returns at once."""

    def may_wake(self, instance: Instance) -> bool:
        """A request waits at a sleeping instance. False: the observer wakes it once there is memory."""

    def shutdown_begun(self) -> None:
        """No more requests are accepted, and instances are about to be stopped."""


class ManagerEvents:
    """Passes everything on to the observer, which is made after the manager. Without one, instances wake."""

    def __init__(self) -> None:
        self._observer: ManagerObserver | None = None

    def observe(self, observer: ManagerObserver) -> None:
        """From now on tell `observer`, in the place of an earlier one."""
        self._observer = observer

    def capacity_freed(self, gate: Gate) -> None:
        if self._observer is not None:
            self._observer.capacity_freed(gate)

    def is_sought(self, gate: Gate) -> bool:
        return self._observer is not None and self._observer.is_sought(gate)

    def may_wake(self, instance: Instance) -> bool:
        return self._observer is None or self._observer.may_wake(instance)

    def shutdown_begun(self) -> None:
        if self._observer is not None:
            self._observer.shutdown_begun()
