"""Finds the end of a JSON object in a text that arrives in pieces."""

from __future__ import annotations

import re

_OUTSIDE = re.compile(r'["{}\[\]<]')
_INSIDE = re.compile(r'["\\]')
_CLOSERS = {"{": "}", "[": "]"}


class ObjectScanner:
    """Follows one JSON object: its strings, escapes and brackets. Checks nothing else.

    It is broken if a bracket closes another kind, or at a `<` outside of strings: that starts a delimiter,
    as it can't occur there in JSON.
    """

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._in_string = False
        self._is_escaped = False
        self.is_complete = False
        self.is_broken = False

    @property
    def is_over(self) -> bool:
        return self.is_complete or self.is_broken

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the object, including blanks before it."""
        at = 0
        if not self._closers:
            at = len(text) - len(text.lstrip())
            if at == len(text):
                return at
            if text[at] != "{":
                self.is_broken = True
                return at
        while at < len(text):
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            found = (_INSIDE if self._in_string else _OUTSIDE).search(text, at)
            if found is None:
                return len(text)
            self._apply(found[0])
            at = found.end()
            if self.is_over:
                return at if self.is_complete else found.start()
        return len(text)

    def _apply(self, character: str) -> None:
        if character == '"':
            self._in_string = not self._in_string
        elif self._in_string:
            self._is_escaped = True
        elif character in _CLOSERS:
            self._closers.append(_CLOSERS[character])
        elif character != self._closers[-1]:
            self.is_broken = True
        else:
            self._closers.pop()
            self.is_complete = not self._closers
