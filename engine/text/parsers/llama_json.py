"""Llama 3: `{"name": …, "parameters": {…}}`, alone or after `<|python_tag|>`, several separated by `;`."""

from __future__ import annotations

from collections.abc import Sequence

from engine.text.parsers.events import Tool, ToolEvent
from engine.text.parsers.json_call import JsonCall
from engine.text.parsers.text_scanner import PlainText

TAG = "<|python_tag|>"


class LlamaJsonParser:
    """An object without the tag is a call only if it names one of the tools: else it is an answer in JSON."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._names = frozenset(tool["function"]["name"] for tool in tools)
        self._plain = PlainText((TAG, "{"))
        self._call: JsonCall | None = None
        self._is_behind = False  # a call, where blanks and `;` may stand before the next
        self._num_calls = 0

    def feed(self, text: str) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        while text:
            if self._call is not None:
                found, text = self._call.feed(text)
                events += found
                self._leave(self._call)
            elif self._is_behind:
                text = text.lstrip("; \t\r\n")
                self._is_behind = not text
            else:
                text = self._outside(text, events)
        return events

    def finish(self) -> list[ToolEvent]:
        if self._call is not None:
            return self._call.finish()
        return self._plain.finish(after_call=self._num_calls > 0)

    def _outside(self, text: str, events: list[ToolEvent]) -> str:
        mark, rest = self._plain.feed(text, events)
        if mark is None:
            return ""
        blank = self._plain.take_blank()
        if mark == TAG:
            self._call = JsonCall(self._num_calls, blank + TAG)
            return rest
        self._call = JsonCall(self._num_calls, blank, self._names.__contains__)
        return "{" + rest

    def _leave(self, call: JsonCall) -> None:
        if call.is_over:
            self._call = None
            self._is_behind = call.is_call
            self._num_calls += call.is_call
