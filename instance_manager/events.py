"""The events of instances, numbered and in order: for `GET /events`, metrics and the data plane."""

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

    The event ids of one Berth process are consecutive: a gap means that the reader lost events or that a new
    process has started. No id is used twice, although the latest events may never have been stored: each
    process starts at its time in milliseconds and emits less than one event per millisecond.
    """

    def __init__(self, capacity: int = 1000) -> None:
        self._ring: BroadcastRing[Event] = BroadcastRing(capacity)
        self._listeners: list[Listener] = []
        self.last_event_id = 0  # of the newest event; later ones have higher ids

    def seed(self, events: Sequence[Event], last_event_id: int) -> None:
        """Continue a previous Berth process's events after `last_event_id`; called before the first event."""
        self._ring.extend(events)
        self.last_event_id = last_event_id

    def publish(self, event_type: str, instance_id: str, data: Mapping[str, Any] | None = None) -> Event:
        """Record an event, then call every listener before returning."""
        self.last_event_id += 1
        event = Event(self.last_event_id, event_type, time.time(), instance_id, data or {})
        self._ring.extend((event,))
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # a listener's bug must not stop the transition
                logger.exception("a listener failed on event %d (%s)", event.event_id, event.type)
        return event

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` synchronously on every event; the returned function removes it."""
        self._listeners.append(listener)

        def remove() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return remove

    def since(self, event_id: int) -> list[Event]:
        """The kept events after `event_id`; all for an id above the newest, from another process."""
        return self._ring.since(self._ring_number(event_id))

    def subscribe(self, after: int | None = None) -> AsyncIterator[Event]:
        """Events as they happen; with `after` (a Last-Event-ID), first the kept ones since then."""
        return self._ring.follow(self._ring.last_number if after is None else self._ring_number(after))

    def _ring_number(self, event_id: int) -> int:
        """The ring number after which the events after `event_id` begin."""
        kept = self._ring.tail(self._ring.capacity)
        if event_id > self.last_event_id:
            return self._ring.last_number - len(kept)
        num_newer = len(kept) - bisect_right(kept, event_id, key=lambda event: event.event_id)
        return self._ring.last_number - num_newer

    def close(self) -> None:
        """End every subscription; called when a shutdown begins."""
        self._ring.close()
