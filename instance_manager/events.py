"""What happened to instances, numbered and in order: for `GET /events`, metrics and the data plane."""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from instance_manager.broadcast.ring import BroadcastRing
from instance_manager.types import Event

logger = logging.getLogger("berth.manager")

Listener = Callable[[Event], None]


class EventLog:
    """The last `capacity` events.

    The event ids of one Berth are consecutive: a gap tells a reader that it lost some, or that another Berth
    has begun. No id is used twice, though what was told last may never have been stored: each Berth begins
    at its time in milliseconds, and tells fewer events than one in each.
    """

    def __init__(self, capacity: int = 1000) -> None:
        self._ring: BroadcastRing[Event] = BroadcastRing(capacity)
        self._listeners: list[Listener] = []
        self.last_event_id = 0  # of the newest; all that come have higher ones

    def seed(self, events: Sequence[Event], last_event_id: int) -> None:
        """Go on after an earlier Berth's events, with the id after `last_event_id`; before the first."""
        self._ring.extend(events)
        self.last_event_id = last_event_id

    def publish(self, event_type: str, instance_id: str, data: Mapping[str, Any] | None = None) -> Event:
        """Record an event and call every listener, in this order and before returning."""
        self.last_event_id += 1
        event = Event(self.last_event_id, event_type, time.time(), instance_id, data or {})
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
        return self._ring.since(self._place(event_id))

    def subscribe(self, after: int | None = None) -> AsyncIterator[Event]:
        """Events as they come; with `after` (a Last-Event-ID) those kept since then first."""
        return self._ring.follow(self._ring.last_number if after is None else self._place(after))

    def _place(self, event_id: int) -> int:
        """The number in the ring after which stand the events after this one."""
        kept = self._ring.tail(self._ring.capacity)
        if event_id > self.last_event_id:
            return self._ring.last_number - len(kept)
        newer = len(kept) - bisect_right(kept, event_id, key=lambda event: event.event_id)
        return self._ring.last_number - newer

    def close(self) -> None:
        """End every subscription; called when the manager has stopped."""
        self._ring.close()
