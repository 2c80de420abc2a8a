"""The open connections, and which to close for a new one: the longest idle, then the longest stalled.

Amortised constant time per new connection: no call scans the whole table.
"""

from __future__ import annotations

from itertools import islice
from typing import Protocol

_STALLED_AFTER_S = 5.0  # without progress of what the client sends or reads; then it may be evicted
_MAX_EXAMINED = 16  # stalled connections per call: some stall because we have paused reading


class TrackedConnection(Protocol):
    """One connection."""

    is_listed_idle: bool  # set here; requests with a cached head leave it set

    @property
    def is_idle(self) -> bool: ...  # every request has been answered
    @property
    def answered_at(self) -> float: ...  # time of the last response, or of the connection's start
    @property
    def is_read_paused(self) -> bool: ...  # by us
    def evict(self) -> None: ...  # close at once


class ConnectionTable:
    """The connections of one server, by how little they do."""

    def __init__(self) -> None:
        self._idle: dict[TrackedConnection, float] = {}  # idle since, as recorded; mostly longest first
        self._stalled: dict[TrackedConnection, float] = {}  # waiting for the client to send or read, since

    def mark_idle(self, connection: TrackedConnection) -> None:
        """It has no unanswered request."""
        self._idle.pop(connection, None)
        self._idle[connection] = connection.answered_at
        connection.is_listed_idle = True

    def mark_busy(self, connection: TrackedConnection) -> None:
        """It waits for a response."""
        self._idle.pop(connection, None)
        connection.is_listed_idle = False

    def mark_stalled(self, connection: TrackedConnection, now: float) -> None:
        """We wait for the client, until `mark_moving`."""
        self._stalled.pop(connection, None)
        self._stalled[connection] = now

    def mark_moving(self, connection: TrackedConnection) -> None:
        self._stalled.pop(connection, None)

    def remove(self, connection: TrackedConnection) -> None:
        self._idle.pop(connection, None)
        self._stalled.pop(connection, None)

    def evict_one(self, now: float) -> bool:
        """Close the connection that has been idle or stalled longest; returns whether there was one."""
        connection = self.pop_longest_idle() or self.pop_longest_stalled(now)
        if connection is not None:
            connection.evict()
        return connection is not None

    def pop_longest_idle(self) -> TrackedConnection | None:
        """Remove and return the connection that has been idle longest.

        A connection whose requests on the fast path were not recorded here is re-inserted with its actual
        time: each such step was paid for by a request.
        """
        for _ in range(2 * len(self._idle)):
            connection, recorded = next(iter(self._idle.items()))
            del self._idle[connection]
            if connection.is_idle and connection.answered_at <= recorded:
                return connection
            self._idle[connection] = connection.answered_at
        return None

    def pop_longest_stalled(self, now: float) -> TrackedConnection | None:
        """Remove and return the connection that has stalled longest, if that is long enough to evict it."""
        for connection, since in islice(self._stalled.items(), _MAX_EXAMINED):
            if now - since < _STALLED_AFTER_S:
                return None
            if not connection.is_read_paused:
                del self._stalled[connection]
                return connection
        return None
