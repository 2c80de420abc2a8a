"""Bounds the number of objects that parsing a JSON text would create, before it is parsed. Pure.

Parsed values take up to fifty times the memory of their text, and parsing blocks the interpreter: so arrays,
objects and their values are limited. Strings (texts, images) may have any length: each is one object.
"""

from __future__ import annotations

import re

MAX_CONTAINERS = 100_000  # arrays and objects
MAX_COMMAS = 1_000_000  # between values
# Strings contain brackets and commas too; they are tolerated up to the point where exact counting takes long.
_MANY_TIMES = 20
_SLICE_BYTES = 2**20  # counted at a time
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class TooManyParts(Exception):
    """The message names what there are too many of."""


class PartCounter:
    """Fed with a body as it arrives, it rejects one that could not be parsed anyway."""

    def __init__(self, max_commas: int = MAX_COMMAS) -> None:
        self._max_commas = max_commas
        self._num_containers = self._num_commas = 0

    @property
    def may_be_too_many(self) -> bool:
        """Whether strings have to be excluded from the count."""
        return self._num_containers > MAX_CONTAINERS or self._num_commas > self._max_commas

    def feed(self, piece: bytes) -> None:
        """Raises TooManyParts."""
        self._num_containers += piece.count(b"[") + piece.count(b"{")
        self._num_commas += piece.count(b",")
        _check(self._num_containers, MAX_CONTAINERS * _MANY_TIMES, self._num_commas, MAX_COMMAS * _MANY_TIMES)


def check_parts(body: bytes, max_commas: int = MAX_COMMAS) -> None:
    """Raise TooManyParts for a JSON text with more parts than a request needs."""
    if len(body) <= MAX_CONTAINERS:
        return
    counter = PartCounter(max_commas)
    for start in range(0, len(body), _SLICE_BYTES):
        counter.feed(body[start : start + _SLICE_BYTES])
    if counter.may_be_too_many:
        check_outside_of_texts(body, max_commas)


def check_outside_of_texts(body: bytes, max_commas: int = MAX_COMMAS) -> None:
    """The same, exact. It takes a second per million strings, and other threads run in between."""
    num_containers = num_commas = position = 0
    for text in _STRING.finditer(body):
        start = text.start()
        num_containers += body.count(b"[", position, start) + body.count(b"{", position, start)
        num_commas += body.count(b",", position, start)
        position = text.end()
        _check(num_containers, MAX_CONTAINERS, num_commas, max_commas)
    num_containers += body.count(b"[", position) + body.count(b"{", position)
    num_commas += body.count(b",", position)
    _check(num_containers, MAX_CONTAINERS, num_commas, max_commas)


def _check(num_containers: int, max_containers: int, num_commas: int, max_commas: int) -> None:
    if num_containers > max_containers:
        raise TooManyParts(f"the body has more than {max_containers} arrays and objects, the limit")
    if num_commas > max_commas:
        raise TooManyParts(f"the body has more than {max_commas} commas between values, the limit")
