"""How many lists, objects and values a JSON text holds, counted before a parser makes an object of each.

Commas and brackets within strings don't count, so that long texts and images in data URLs pass.
"""

from __future__ import annotations

from engine.server.large_work import Pace
from engine.server.limits import MAX_JSON_CONTAINERS, MAX_JSON_VALUES

_WINDOW_BYTES = 2**18  # counted at a time, with the interpreter held
_IRRELEVANT = bytes(byte for byte in range(256) if byte not in b'",[{')


def within_budget(raw: bytes) -> int | None:
    """None for a text that may be parsed, else the length of a beginning of it that may be."""
    num_containers = raw.count(b"[") + raw.count(b"{")
    if num_containers <= MAX_JSON_CONTAINERS and num_containers + raw.count(b",") < MAX_JSON_VALUES:
        return None  # even if none of them is in a string
    return _count_outside_strings(raw)


def _count_outside_strings(raw: bytes) -> int | None:
    num_containers = num_commas = start = 0
    is_inside = False
    pace = Pace()
    while start < len(raw):
        window = _window(raw, start)
        stop = start + len(window)
        if b"\\" in window:
            window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = window.translate(None, _IRRELEVANT).split(b'"')
        outside = b"".join(pieces[is_inside::2])
        is_inside ^= len(pieces) % 2 == 0
        num_containers += outside.count(b"[") + outside.count(b"{")
        num_commas += outside.count(b",")
        if num_containers > MAX_JSON_CONTAINERS or num_containers + num_commas >= MAX_JSON_VALUES:
            return start
        start = stop
        pace.rest()
    return None


def _window(raw: bytes, start: int) -> bytes:
    """The next bytes, which begin and end between escapes."""
    window = raw[start : start + _WINDOW_BYTES]
    num_backslashes = len(window) - len(window.rstrip(b"\\"))
    return window if num_backslashes % 2 == 0 else raw[start : start + _WINDOW_BYTES + 1]
