"""Reads the values of a GGUF file one after the other, within limits that a hostile file can't exceed.

Reads by `pread`, not by a mapping: a file that is cut off meanwhile would end the process that has it mapped.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instance_manager.gguf.errors import GgufError

MAX_HEADER_BYTES = 64 << 20  # the largest vocabularies take 20 MiB
_MAX_ELEMENTS = 1 << 22  # of all arrays together
_MAX_NESTING = 4
_MAX_KEY_BYTES = 1 << 16
_MAX_TEXT_BYTES = 1 << 16  # of a value that is kept
_MAX_KEPT = 1 << 12  # numbers of an array that is kept: a value per layer
_MAX_KEPT_BYTES = 4 << 20  # of all values together
_PIECE_BYTES = 256 << 10

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct(f"<{code}") for kind, code in _FORMATS.items()}
_LENGTH = _SCALARS[10]
_STRING, _ARRAY = 8, 9


class LongText:
    """Where a text lies that is longer than those that are kept."""

    __slots__ = ("length", "start")

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.length = length


class Skipped:
    """The size of an array that isn't kept."""

    __slots__ = ("length",)

    def __init__(self, length: int) -> None:
        self.length = length


class EndOfWindow(Exception):
    """The part of the file that was to be read is over; what was read is right."""

    def __init__(self, value: Skipped | None = None) -> None:
        super().__init__()
        self.value = value  # of the last key, where it is known


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a regular file; nothing else is waited for. Raises GgufError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise GgufError(f"can't be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise GgufError("isn't a file")
        yield descriptor
    finally:
        os.close(descriptor)


class Reader:
    """The values of an open file. Every method raises GgufError, or EndOfWindow after `window` bytes."""

    def __init__(self, descriptor: int, *, window: int | None = None) -> None:
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._limit = MAX_HEADER_BYTES if window is None else window
        self._is_window = window is not None
        self._piece = b""
        self._piece_start = 0
        self._elements_left = _MAX_ELEMENTS
        self._kept_left = _MAX_KEPT_BYTES
        self.at = 0

    def scalar(self, kind: int, what: str) -> Any:
        form = _SCALARS[kind]
        return form.unpack_from(self._ahead(form.size, what), self._skip(form.size))[0]

    def raw(self, size: int, what: str) -> bytes:
        piece = self._ahead(size, what)
        start = self._skip(size)
        return piece[start : start + size]

    def text(self, what: str, most: int = _MAX_KEY_BYTES) -> str:
        length = self.scalar(10, what)
        if length > most:
            raise GgufError(f"isn't a valid GGUF file: {what} has {length} bytes")
        return self.raw(length, what).decode(errors="replace")

    def value(self, kind: int, what: str) -> Any:
        """A number, a text, a LongText, a list of numbers, or Skipped."""
        if kind in _SCALARS:
            return self.scalar(kind, what)
        if kind == _STRING:
            return self._text_or_place(what)
        if kind == _ARRAY:
            return self._array(what, 1)
        raise GgufError(f"isn't a valid GGUF file: {what} has an unknown type ({kind})")

    def _text_or_place(self, what: str) -> str | LongText:
        length = self.scalar(10, what)
        if length <= _MAX_TEXT_BYTES:
            self._keep(length, what)
            return self.raw(length, what).decode(errors="replace")
        place = LongText(self.at, length)
        self._pass(length, what)
        return place

    def _array(self, what: str, nesting: int) -> Any:
        kind, count = self.scalar(4, what), self.scalar(10, what)
        if count > self._elements_left:
            raise GgufError(f"isn't a valid GGUF file: {what} has {count} elements")
        self._elements_left -= count
        if kind in _SCALARS:
            return self._numbers(kind, count, what)
        if self._is_window and count > _MAX_KEPT:
            raise EndOfWindow(Skipped(count))
        if kind == _STRING:
            self._pass_texts(count, what)
        elif kind == _ARRAY and nesting < _MAX_NESTING:
            for _ in range(count):
                self._array(what, nesting + 1)
        else:
            raise GgufError(f"isn't a valid GGUF file: {what} has elements of type {kind}")
        return Skipped(count)

    def _numbers(self, kind: int, count: int, what: str) -> list[Any] | Skipped:
        form = _SCALARS[kind]
        if count > _MAX_KEPT:
            self._pass(count * form.size, what)
            return Skipped(count)
        self._keep(count * _LENGTH.size, what)
        return [number for (number,) in form.iter_unpack(self.raw(count * form.size, what))]

    def _keep(self, size: int, what: str) -> None:
        self._kept_left -= size
        if self._kept_left < 0:
            raise GgufError(f"isn't a valid GGUF file: up to {what}, its values are too many")

    def _pass_texts(self, count: int, what: str) -> None:
        """Over so many texts: hundreds of thousands in a vocabulary, so without a call for each."""
        unpack, at = _LENGTH.unpack_from, self.at
        piece, start = self._piece, self._piece_start
        last = start + len(piece) - _LENGTH.size
        for _ in range(count):
            if at > last:
                self.at = at
                piece = self._ahead(_LENGTH.size, what)
                start = self._piece_start
                last = start + len(piece) - _LENGTH.size
            at += _LENGTH.size + unpack(piece, at - start)[0]
        self.at = at
        self._pass(0, what)

    def _pass(self, size: int, what: str) -> None:
        """Over so many bytes, without reading them."""
        self._check(size, what)
        self.at += size

    def _skip(self, size: int) -> int:
        """Move on; returns the old position within the piece that was read."""
        start = self.at - self._piece_start
        self.at += size
        return start

    def _ahead(self, size: int, what: str) -> bytes:
        """A piece of the file in which the next `size` bytes lie."""
        self._check(size, what)
        begin = self.at - self._piece_start
        if not 0 <= begin <= len(self._piece) - size:
            try:
                self._piece = os.pread(self._descriptor, max(size, self._piece_bytes), self.at)
            except OSError as error:
                raise GgufError(f"can't be read: {error.strerror or error}") from None
            self._piece_start = self.at
            if len(self._piece) < size:
                raise self._cut_off(what)
        return self._piece

    @property
    def _piece_bytes(self) -> int:
        return min(_PIECE_BYTES, max(self._limit - self.at, 0))

    def _check(self, size: int, what: str) -> None:
        if self.at + size > self.size:
            raise self._cut_off(what)
        if self.at + size > self._limit:
            if self._is_window:
                raise EndOfWindow
            raise GgufError(f"isn't a valid GGUF file: its header has more than {MAX_HEADER_BYTES} bytes")

    def _cut_off(self, what: str) -> GgufError:
        return GgufError(f"isn't a whole GGUF file: it ends within {what}, at byte {self.size}")
