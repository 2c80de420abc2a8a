"""Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as many as there are."""

from __future__ import annotations

from engine.text.parsers.events import TextPiece, ToolEvent
from engine.text.parsers.json_call import JsonCall
from engine.text.parsers.text_scanner import PlainText

START, END = "<tool_call>", "</tool_call>"


class HermesParser:
    def __init__(self) -> None:
        self._plain = PlainText((START,))
        self._call: JsonCall | None = None
        self._behind = ""  # a call's object: blanks and what may become its end mark
        self._num_calls = 0

    def feed(self, text: str) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        while text:
            if self._call is None:
                mark, text = self._plain.feed(text, events)
                if mark:
                    self._call = JsonCall(self._num_calls, self._plain.take_blank() + START)
            elif not self._call.is_over:
                found, text = self._call.feed(text)
                events += found
            else:
                text = self._end(self._call, text, events)
        return events

    def finish(self) -> list[ToolEvent]:
        if self._call is None:
            return self._plain.finish(after_call=self._num_calls > 0)
        if not self._call.is_over:
            return self._call.finish()
        rest = self._behind
        return [TextPiece(rest)] if rest and not self._call.is_call else []

    def _end(self, call: JsonCall, text: str, events: list[ToolEvent]) -> str:
        """Behind an object: skip its end mark. Where the object was no call, all of it is text."""
        self._call = None
        if not call.is_call:
            return text
        text = self._behind + text
        self._behind = ""
        rest = text.lstrip()
        if len(rest) < len(END) and END.startswith(rest):
            self._behind, self._call = text, call
            return ""
        self._num_calls += 1
        return rest.removeprefix(END)
