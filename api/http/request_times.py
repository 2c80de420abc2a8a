"""When one request arrived and when an engine was ready for it, for protocols that report it.

The part that answers in a protocol puts it into the scope; the data plane notes the lease.
"""

from __future__ import annotations

import time

TIMES = "berth.times"
COLLECTED = "berth.collected"  # in a scope: its stream is collected, so comments in it would reach nobody


class RequestTimes:
    """Nanoseconds of `time.perf_counter_ns`."""

    __slots__ = ("leased_ns", "started_ns")

    def __init__(self) -> None:
        self.started_ns = time.perf_counter_ns()
        self.leased_ns: int | None = None  # None: no engine has been asked

    def note_lease(self) -> None:
        """The last one counts: an earlier engine may have vanished."""
        self.leased_ns = time.perf_counter_ns()
