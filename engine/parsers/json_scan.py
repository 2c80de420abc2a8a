"""Where a JSON value ends, in a text that comes in pieces."""

from __future__ import annotations


class ValueScanner:
    """Follows one JSON value: its strings, escapes and brackets. Doesn't check it."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._has_begun = False
        self.is_complete = False

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the value; `is_complete` once it has ended."""
        for index, character in enumerate(text):
            if self._in_string:
                self._in_text(character)
            elif character == '"':
                self._in_string = self._has_begun = True
            elif character in "{[":
                self._depth += 1
                self._has_begun = True
            elif character in "}]":
                if self._depth == 0:  # a bare number or word, ended by what holds it
                    self.is_complete = True
                    return index
                self._depth -= 1
            elif self._depth == 0 and self._has_begun and character in ", \t\r\n":
                self.is_complete = True
                return index
            elif not character.isspace():
                self._has_begun = True
                continue
            if self._has_begun and not self._depth and not self._in_string and character in '"}]':
                self.is_complete = True
                return index + 1
        return len(text)

    def _in_text(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._in_string = False
