"""Parses server-sent events as they arrive. Pure: pieces of bytes in, events and comments out.

Follows the HTML standard's "event stream interpretation"; fields other than `data` are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A CR at the very end may be half of a CRLF, so it is left for the next piece.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")
_BOM = b"\xef\xbb\xbf"

MAX_EVENT_BYTES = 16 * 1024 * 1024


class EventTooLong(Exception):
    """An event exceeds the limit, so this is probably not an event stream."""


@dataclass(frozen=True, slots=True)
class SseEvent:
    """The data of one event, with its lines joined."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SseComment:
    """One comment without its colon; servers send them to keep connections alive."""

    text: bytes


class EventReader:
    """Parses one stream, however it is split into pieces."""

    __slots__ = ("_data", "_is_begun", "_rest", "_searched", "_size")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0  # bytes of `_rest` known to contain no line end
        self._data: list[bytes] = []  # of the current event
        self._size = 0
        self._is_begun = False

    @property
    def is_between_events(self) -> bool:
        """Whether every event that has begun is complete."""
        return not self._data and not self._rest.strip(b"\r\n")

    def feed(self, piece: bytes) -> list[SseEvent | SseComment]:
        """The events and comments that this piece completes. Raises EventTooLong."""
        self._rest += piece
        found: list[SseEvent | SseComment] = []
        start = 0
        while (end := _LINE_END.search(self._rest, max(start, self._searched))) is not None:
            item = self._line(bytes(self._rest[start : end.start()]))
            if item is not None:
                found.append(item)
            start = self._searched = end.end()
        del self._rest[:start]
        self._searched = max(0, len(self._rest) - 1)
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event exceeds {MAX_EVENT_BYTES} bytes")
        return found

    def _line(self, line: bytes) -> SseEvent | SseComment | None:
        if not self._is_begun:
            self._is_begun = True
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if not name:
            return SseComment(value)
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
        return None

    def _dispatch(self) -> SseEvent | None:
        if not self._data:
            return None
        event = SseEvent(b"\n".join(self._data))
        self._data.clear()
        self._size = 0
        return event
