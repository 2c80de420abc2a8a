"""Counts the lists, objects and values of a JSON text before a parser creates an object for each.

Commas and brackets inside strings do not count, so that long texts and images in data URLs pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.server.http.large_work import GilThrottle
from engine.server.protocol.limits import (
    MAX_JSON_CONTAINERS,
    MAX_JSON_ESCAPES,
    MAX_JSON_MEMBERS,
    MAX_JSON_VALUES,
)

_WINDOW_BYTES = 2**18  # counted at a time, holding the GIL
_IRRELEVANT = bytes(byte for byte in range(256) if byte not in b'",:[{')


@dataclass(frozen=True, slots=True)
class JsonExcess:
    """A text with too many elements to parse. `problem`: which elements, and the limit."""

    length: int  # of a prefix that is small enough to parse
    problem: str


@dataclass(slots=True)
class _Count:
    containers: int = 0
    members: int = 0
    commas: int = 0
    escapes: int = 0  # in strings: each costs the parser as much as a number

    def add(self, text: bytes, num_escapes: int) -> None:
        self.escapes += num_escapes
        self.containers += text.count(b"[") + text.count(b"{")
        self.members += text.count(b":")
        self.commas += text.count(b",")

    @property
    def is_small(self) -> bool:
        """Whether the text so far is cheap enough to parse, to find the field at fault."""
        return max(self.containers + self.commas, self.escapes) <= MAX_JSON_CONTAINERS

    @property
    def excess(self) -> str | None:
        """The limit that is exceeded."""
        for what, size, most in (
            ("lists and objects", self.containers, MAX_JSON_CONTAINERS),
            ("fields of objects", self.members, MAX_JSON_MEMBERS),
            ("JSON values", self.containers + self.commas + 1, MAX_JSON_VALUES),
            ("escapes in strings", self.escapes, MAX_JSON_ESCAPES),
        ):
            if size > most:
                return f"at most {most} {what}, not {size} or more"
        return None


def find_json_excess(raw: bytes) -> JsonExcess | None:
    """None for a text that is within the limits."""
    if len(raw) <= min(MAX_JSON_CONTAINERS, MAX_JSON_MEMBERS):
        return None  # each takes at least one byte
    total = _Count()
    for start in range(0, len(raw), _WINDOW_BYTES):
        window = raw[start : start + _WINDOW_BYTES]
        total.add(window, window.count(b"\\"))
    return None if total.excess is None else _count_outside_strings(raw)


def _count_outside_strings(raw: bytes) -> JsonExcess | None:
    count, throttle = _Count(), GilThrottle()
    start = parseable = 0
    is_inside = False
    while start < len(raw):
        window = _window(raw, start)
        stop = start + len(window)
        if num_escapes := window.count(b"\\"):
            num_escapes -= window.count(b"\\\\")  # counted twice
            window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = window.translate(None, _IRRELEVANT).split(b'"')
        count.add(b"".join(pieces[is_inside::2]), num_escapes)
        is_inside ^= len(pieces) % 2 == 0
        if (problem := count.excess) is not None:
            return JsonExcess(parseable, problem)
        start = stop
        if count.is_small or not parseable:
            parseable = stop
        throttle.pause()
    return None


def _window(raw: bytes, start: int) -> bytes:
    """The next bytes; the window does not split an escape."""
    window = raw[start : start + _WINDOW_BYTES]
    num_backslashes = len(window) - len(window.rstrip(b"\\"))
    return window if num_backslashes % 2 == 0 else raw[start : start + _WINDOW_BYTES + 1]
