"""Who is connected, and who of them gives way to the next: the idlest, then whoever stands still longest.

Constant time for each connection that comes, on average: nobody looks through all of them.
"""

from __future__ import annotations

from itertools import islice
from typing import Protocol

_STILL_S = 5.0  # that a client has neither sent nor read what it has begun to, until it may have to give way
_MAX_LOOKED_AT = 16  # of those that stand still: some of them do so on our account


class TrackedConnection(Protocol):
    """One connection."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing has been asked that is not answered."""

    @property
    def answered_at(self) -> float:
        """When it last got an answer, or came, by the loop's clock."""

    @property
    def is_held_up(self) -> bool:
        """Whether it is us who don't read what it sends."""


class ConnectionTable:
    """The connections of one server, by how little they do."""

    def __init__(self) -> None:
        self._idle: dict[
            TrackedConnection, float
        ] = {}  # since when, as far as was noted; the idlest mostly first
        self._still: dict[TrackedConnection, float] = {}  # with something half sent or half read: since when

    def idle(self, guest: TrackedConnection) -> None:
        """It asks for nothing now."""
        self._idle.pop(guest, None)
        self._idle[guest] = guest.answered_at

    def busy(self, guest: TrackedConnection) -> None:
        """It waits for an answer."""
        self._idle.pop(guest, None)

    def still(self, guest: TrackedConnection, now: float) -> None:
        """From now on it is waited for, until it `moves`."""
        self._still.pop(guest, None)
        self._still[guest] = now

    def moves(self, guest: TrackedConnection) -> None:
        self._still.pop(guest, None)

    def gone(self, guest: TrackedConnection) -> None:
        self._idle.pop(guest, None)
        self._still.pop(guest, None)

    def take_idlest(self) -> TrackedConnection | None:
        """The one that has been idle longest.

        Where a request came and went unnoticed here, it goes back to where that puts it: each such step was
        paid for by a request.
        """
        for _ in range(2 * len(self._idle)):
            guest, noted = next(iter(self._idle.items()))
            del self._idle[guest]
            if guest.is_idle and guest.answered_at <= noted:
                return guest
            self._idle[guest] = guest.answered_at
        return None

    def take_stillest(self, now: float) -> TrackedConnection | None:
        """The one that has stood still longest, if that was long enough to send it away."""
        for guest, since in islice(self._still.items(), _MAX_LOOKED_AT):
            if now - since < _STILL_S:
                return None
            if not guest.is_held_up:
                del self._still[guest]
                return guest
        return None
