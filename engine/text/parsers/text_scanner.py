"""The text around calls, in which their marks are looked for."""

from __future__ import annotations

from collections.abc import Sequence

from engine.text.parsers.delimiters import first_mark, held_back
from engine.text.parsers.events import TextPiece, ToolEvent


class PlainText:
    """Shown as soon as it can be no mark. Blanks beside a call are no content."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = marks
        self._held = ""  # what may become a mark
        self._blank = ""  # shown only if text follows

    def feed(self, text: str, events: list[ToolEvent]) -> tuple[str | None, str]:
        """The first mark and what follows it; (None, "") while there is none."""
        text = self._held + text
        found = first_mark(text, self._marks)
        if found is None:
            end = len(text) - held_back(text, self._marks)
            self._held = text[end:]
            self._show(text[:end], events)
            return None, ""
        at, mark = found
        self._held = ""
        self._show(text[:at], events)
        return mark, text[at + len(mark) :]

    def take_blank(self) -> str:
        """The blanks before a mark, for who finds that it was none."""
        blank, self._blank = self._blank, ""
        return blank

    def finish(self, *, after_call: bool) -> list[ToolEvent]:
        """What was held back; blanks alone are left out after a call."""
        rest = self._blank + self._held if self._held or not after_call else ""
        self._held = self._blank = ""
        return [TextPiece(rest)] if rest else []

    def _show(self, text: str, events: list[ToolEvent]) -> None:
        text = self._blank + text
        kept = text.rstrip()
        self._blank = text[len(kept) :]
        if kept:
            events.append(TextPiece(kept))
