"""Server-sent events, read as they arrive. Pure: pieces of bytes in, events and comments out.

After the HTML standard's "event stream interpretation"; fields other than `data` are passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A CR at the very end may be one half of a CRLF, so it is left for the next piece.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")
_BOM = b"\xef\xbb\xbf"

MAX_EVENT_BYTES = 16 * 1024 * 1024


class EventTooLong(Exception):
    """An event without end; the stream is not what it says it is."""


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event's data, its lines joined."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SseComment:
    """One comment, without its colon; servers send them to keep connections alive."""

    text: bytes


class EventReader:
    """Reads one stream. How it is cut into pieces makes no difference to what comes out."""

    __slots__ = ("_data", "_is_begun", "_rest", "_searched", "_size")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0  # bytes of `_rest` that hold no line's end
        self._data: list[bytes] = []  # of the event whose blank line has not come yet
        self._size = 0
        self._is_begun = False

    @property
    def is_between_events(self) -> bool:
        """Whether nothing has begun that is not complete."""
        return not self._data and not self._rest.strip(b"\r\n")

    def feed(self, piece: bytes) -> list[SseEvent | SseComment]:
        """What this piece completes. Raises EventTooLong."""
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
            raise EventTooLong(f"an event of more than {MAX_EVENT_BYTES} bytes")
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
