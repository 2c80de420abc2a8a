"""Scans the text around calls for their delimiters."""

from __future__ import annotations

from collections.abc import Sequence

from engine.text.parsers.delimiters import first_delimiter, held_back
from engine.text.parsers.events import TextPiece, ToolEvent


class TextScanner:
    """Reports text as soon as it can't become a delimiter. Blanks next to a call are not content."""

    def __init__(self, delimiters: Sequence[str]) -> None:
        self._delimiters = delimiters
        self._held = ""  # what may become a delimiter
        self._blank = ""  # reported only if text follows

    def feed(self, text: str, events: list[ToolEvent]) -> tuple[str | None, str]:
        """The first delimiter and what follows it; (None, "") while there is none."""
        text = self._held + text
        found = first_delimiter(text, self._delimiters)
        if found is None:
            end = len(text) - held_back(text, self._delimiters)
            self._held = text[end:]
            self._show(text[:end], events)
            return None, ""
        at, delimiter = found
        self._held = ""
        self._show(text[:at], events)
        return delimiter, text[at + len(delimiter) :]

    def pop_blanks(self) -> str:
        """The blanks before a delimiter, for a caller that finds that it was text."""
        blank, self._blank = self._blank, ""
        return blank

    def finish(self, *, after_call: bool) -> list[ToolEvent]:
        """The text that was held back; blanks alone are omitted after a call."""
        rest = self._blank + self._held if self._held or not after_call else ""
        self._held = self._blank = ""
        return [TextPiece(rest)] if rest else []

    def _show(self, text: str, events: list[ToolEvent]) -> None:
        text = self._blank + text
        kept = text.rstrip()
        self._blank = text[len(kept) :]
        if kept:
            events.append(TextPiece(kept))
