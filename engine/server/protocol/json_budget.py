"""How many lists, objects and values a JSON text holds, counted before a parser makes an object of each.

Commas and brackets within strings don't count, so that long texts and images in data URLs pass.
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

_WINDOW_BYTES = 2**18  # counted at a time, with the interpreter held
_IRRELEVANT = bytes(byte for byte in range(256) if byte not in b'",:[{')


@dataclass(frozen=True, slots=True)
class JsonExcess:
    """Of a text that holds too much to be parsed. `told`: what it has too many of, and how many may be."""

    length: int  # of a beginning that may be parsed
    told: str


@dataclass(slots=True)
class _Count:
    containers: int = 0
    members: int = 0
    commas: int = 0
    escapes: int = 0  # in strings: each costs the parser what a number does

    def add(self, text: bytes, num_escapes: int) -> None:
        self.escapes += num_escapes
        self.containers += text.count(b"[") + text.count(b"{")
        self.members += text.count(b":")
        self.commas += text.count(b",")

    @property
    def is_little(self) -> bool:
        """Whether it may be parsed just to see what there is too much of."""
        return max(self.containers + self.commas, self.escapes) <= MAX_JSON_CONTAINERS

    @property
    def excess(self) -> str | None:
        """What there is too much of."""
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
    """None for a text that may be parsed."""
    if len(raw) <= min(MAX_JSON_CONTAINERS, MAX_JSON_MEMBERS):
        return None  # each takes a byte at least
    everywhere = _Count()
    for start in range(0, len(raw), _WINDOW_BYTES):
        window = raw[start : start + _WINDOW_BYTES]
        everywhere.add(window, window.count(b"\\"))
    return None if everywhere.excess is None else _count_outside_strings(raw)


def _count_outside_strings(raw: bytes) -> JsonExcess | None:
    count, throttle = _Count(), GilThrottle()
    start = shown = 0
    is_inside = False
    while start < len(raw):
        window = _window(raw, start)
        stop = start + len(window)
        if num_escapes := window.count(b"\\"):
            num_escapes -= window.count(b"\\\\")  # which is one
            window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = window.translate(None, _IRRELEVANT).split(b'"')
        count.add(b"".join(pieces[is_inside::2]), num_escapes)
        is_inside ^= len(pieces) % 2 == 0
        if (told := count.excess) is not None:
            return JsonExcess(shown, told)
        start = stop
        if count.is_little or not shown:
            shown = stop
        throttle.pause()
    return None


def _window(raw: bytes, start: int) -> bytes:
    """The next bytes, which begin and end between escapes."""
    window = raw[start : start + _WINDOW_BYTES]
    num_backslashes = len(window) - len(window.rstrip(b"\\"))
    return window if num_backslashes % 2 == 0 else raw[start : start + _WINDOW_BYTES + 1]
