"""What happened to instances, numbered and in order: for `GET /events`, metrics and the data plane."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from instance_manager.broadcast.ring import BroadcastRing
from instance_manager.types import Event

logger = logging.getLogger("berth.manager")

Listener = Callable[[Event], None]


class EventLog:
    """The last `capacity` events. Event ids are consecutive: a gap tells a reader that it lost some."""

    def __init__(self, capacity: int = 1000) -> None:
        self._ring: BroadcastRing[Event] = BroadcastRing(capacity)
        self._listeners: list[Listener] = []

    @property
    def last_event_id(self) -> int:
        """The id of the newest event; 0 before the first."""
        return self._ring.last_number

    def seed(self, events: Sequence[Event], last_event_id: int) -> None:
        """Go on where an earlier Berth has ended: with the id after `last_event_id`. Before the first event.

        Of its events those are kept that end there without a gap.
        """
        kept: list[Event] = []
        for event in reversed(events):
            if event.event_id != last_event_id - len(kept):
                break
            kept.append(event)
        self._ring.begin_at(last_event_id - len(kept) + 1)
        self._ring.extend(reversed(kept))

    def publish(self, event_type: str, instance_id: str, data: Mapping[str, Any] | None = None) -> Event:
        """Record an event and call every listener, in this order and before returning."""
        event = Event(self._ring.last_number + 1, event_type, time.time(), instance_id, data or {})
        self._ring.extend((event,))
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # a listener's fault must not stop the transition that is being told
                logger.exception("a listener failed on event %d (%s)", event.event_id, event.type)
        return event

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` synchronously on every event; the function returned takes it off again."""
        self._listeners.append(listener)

        def remove() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return remove

    def since(self, event_id: int) -> list[Event]:
        """The events kept after `event_id`. An id from the future is one of an earlier Berth: all are new."""
        return self._ring.since(event_id if event_id <= self.last_event_id else 0)

    def subscribe(self, after: int | None = None) -> AsyncIterator[Event]:
        """Events as they come; with `after` (a Last-Event-ID) those kept since then first."""
        if after is None:
            after = self.last_event_id
        elif after > self.last_event_id:
            after = 0
        return self._ring.follow(after)

    def close(self) -> None:
        """End every subscription; called when the manager has stopped."""
        self._ring.close()
