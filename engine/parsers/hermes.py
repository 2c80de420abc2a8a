"""Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as many as there are."""

from __future__ import annotations

from engine.parsers.events import CallEnded, TextPiece, ToolEvent
from engine.parsers.json_call import JsonCall
from engine.parsers.marks import held_back

START, END = "<tool_call>", "</tool_call>"


class HermesParser:
    def __init__(self) -> None:
        self._held = ""  # outside of calls: what may become a mark
        self._call: JsonCall | None = None
        self._after = ""  # behind a call's object: what should be blanks and the end mark
        self._num_calls = 0
        self._blank = ""  # between calls: shown only if text follows

    def feed(self, text: str) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        while text:
            if self._call is None:
                text = self._outside(text, events)
            elif not self._call.is_complete:
                found, text = self._call.feed(text)
                events += found
            else:
                text = self._behind(text, events)
        return events

    def finish(self) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        if self._call is None:
            # Blanks at the end belong to a text, but not to what stands between calls.
            rest = self._held if self._num_calls and not self._held else self._blank + self._held
            return [TextPiece(rest)] if rest else []
        if not self._call.has_begun:
            events.append(TextPiece(self._blank + START + self._call.text + self._after))
        elif not self._call.is_complete:
            events.append(CallEnded(self._num_calls))
        self._call = None
        return events

    def _outside(self, text: str, events: list[ToolEvent]) -> str:
        text = self._held + text
        before, mark, after = text.partition(START)
        keep = 0 if mark else held_back(before, (START,))
        self._held = before[len(before) - keep :]
        self._show(before[: len(before) - keep], events)
        if mark:
            self._call = JsonCall(self._num_calls)
        return after

    def _show(self, text: str, events: list[ToolEvent]) -> None:
        """Blanks between calls, and between text and a call, are no content."""
        text = self._blank + text
        kept = text.rstrip()
        self._blank = text[len(kept) :]
        if kept:
            events.append(TextPiece(kept))

    def _behind(self, text: str, events: list[ToolEvent]) -> str:
        """Skip the end mark; a call that isn't one is given back as text."""
        call = self._call
        text = self._after + text
        self._after = ""
        blank = text.lstrip()
        if END.startswith(blank) and blank != END:
            self._after = text
            return ""
        if call is not None and not call.has_begun:
            end = text[: len(text) - len(blank)] + END if blank.startswith(END) else ""
            events.append(TextPiece(self._blank + START + call.text + end))
        else:
            self._num_calls += 1
        self._blank = ""
        self._call = None
        return blank.removeprefix(END)
