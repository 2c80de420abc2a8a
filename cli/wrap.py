"""Writes words whole as they arrive: lines break between words, never within one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import TextIO

from rich.cells import cell_len

_TAB = 8
_JOINER = "\u200d"
_NARROWEST = 20  # columns; on fewer, the terminal breaks lines


class WordWrap:
    """Holds a word back until it is complete; the terminal breaks words longer than a line."""

    def __init__(self, out: TextIO, columns: Callable[[], int]) -> None:
        """`columns` is called for each word, as the window may be resized."""
        self._out = out
        self._columns = columns
        self._column = 0  # of the cursor
        self._space = ""  # before the word
        self._word = ""
        self._in_long_word = False

    def write(self, text: str) -> None:
        for char in text:
            if char == "\n":
                self.flush()
                self._out.write("\n")
                self.at_line_start()
            elif char in " \t":
                self._end_word()
                self._in_long_word = False
                self._space += char
            else:
                if self._word and _may_break_between(self._word[-1], char):
                    self._end_word()
                self._word += char
                if not self._in_long_word and cell_len(self._word) >= self._columns():
                    self._end_word()
                    self._in_long_word = True

    def flush(self) -> None:
        """Write the text held back."""
        self._end_word()
        self._out.write(self._space)
        self._column += len(self._space)
        self._space = ""

    def at_line_start(self) -> None:
        """The cursor is at the start of a line."""
        self._column, self._in_long_word = 0, False

    def _end_word(self) -> None:
        if not self._word:
            return
        columns = self._columns()
        end = self._after_space() + cell_len(self._word)
        if end > columns >= _NARROWEST and self._column and not self._in_long_word:
            self._out.write("\n" + self._word)
            end = cell_len(self._word)
        else:
            self._out.write(self._space + self._word)
        self._column = end
        self._space = self._word = ""

    def _after_space(self) -> int:
        column = self._column
        for char in self._space:
            column = (column // _TAB + 1) * _TAB if char == "\t" else column + 1
        return column


def _may_break_between(last: str, char: str) -> bool:
    """Between characters of scripts without spaces, but not before modifiers and joiners."""
    if last == _JOINER or not (cell_len(last) == 2 or cell_len(char) == 2):
        return False
    is_modifier = "\U0001f3fb" <= char <= "\U0001f3ff"
    return not is_modifier and unicodedata.category(char) in ("Lo", "So") and char != _JOINER
