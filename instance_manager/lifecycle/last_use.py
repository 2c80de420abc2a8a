"""Keeps the stored time of each instance's last use recent, with few writes: see decision 0009."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from instance_manager.lifecycle.gate import Gate

LAST_USE_PRECISION_S = 60.0  # the stored time of an instance's last use is at most this much too early
_INTERVAL_S = 1.0
_MARGIN_S = 2.0  # until the next look, and for the write itself


def last_used_at(stored: float, *, precision_s: float, wall_now: float, now: float) -> float:
    """The latest time, on the clock of `now`, at which an instance may have been used before a restart.

    `stored`: its last use, by the wall clock. In the future, because that clock was set, it counts as now.
    """
    return now - max(0.0, wall_now - stored - precision_s)


class LastUse:
    """`mark` has an instance's record written. Requests are not slowed: this looks at the gates from outside.

    The first request after a long idle time is stored within a second, a busy engine once a minute.
    """

    def __init__(
        self,
        gates: Mapping[str, Gate],
        mark: Callable[[str], None],
    ) -> None:
        self._gates = gates
        self._mark = mark
        self._stored: dict[str, float] = {}  # last use by instance, on our clock
        self._task: asyncio.Task[None] | None = None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Look now, before any request, and then every second."""
        self.look()
        self._task = tasks.create_task(self._run(), name="last use")

    def stop(self) -> None:
        """Look for the last time."""
        if self._task is not None:
            self._task.cancel()
            self.look(is_last=True)

    def look(self, *, is_last: bool = False) -> None:
        """Mark the instances whose stored last use is too old; `is_last`: all that were used since.

        An instance that was not there at the last look has just been stored.
        """
        allowed_s = 0.0 if is_last else LAST_USE_PRECISION_S - _MARGIN_S
        stored: dict[str, float] = {}
        for instance_id, gate in self._gates.items():
            used = gate.last_use
            stored[instance_id] = known = self._stored.get(instance_id, used)
            if used > known and used - known >= allowed_s:
                stored[instance_id] = used
                self._mark(instance_id)
        self._stored = stored

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            self.look()
