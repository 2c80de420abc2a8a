"""Llama 3: `{"name": …, "parameters": {…}}`, alone or after `<|python_tag|>`, several separated by `;`."""

from __future__ import annotations

from collections.abc import Sequence

from engine.text.parsers.events import Tool, ToolEvent
from engine.text.parsers.json_call import JsonCall
from engine.text.parsers.text_scanner import TextScanner
from engine.text.parsers.tool_constraints import DelimitedCalls, quoted
from engine.text.parsers.tool_format import ToolFormat

TAG = "<|python_tag|>"


class LlamaJsonParser:
    """An object without the tag is a call only if it names one of the tools; else it is a JSON answer."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._names = frozenset(tool["function"]["name"] for tool in tools)
        self._scanner = TextScanner((TAG, "{"))
        self._call: JsonCall | None = None
        self._is_after_call = False  # where blanks and `;` may precede the next call
        self._num_calls = 0

    def feed(self, text: str) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        while text:
            if self._call is not None:
                found, text = self._call.feed(text)
                events += found
                self._end_if_over(self._call)
            elif self._is_after_call:
                text = text.lstrip("; \t\r\n")
                self._is_after_call = not text
            else:
                text = self._outside(text, events)
        return events

    def finish(self) -> list[ToolEvent]:
        if self._call is not None:
            return self._call.finish()
        return self._scanner.finish(after_call=self._num_calls > 0)

    def _outside(self, text: str, events: list[ToolEvent]) -> str:
        delimiter, rest = self._scanner.feed(text, events)
        if delimiter is None:
            return ""
        blank = self._scanner.pop_blanks()
        if delimiter == TAG:
            self._call = JsonCall(self._num_calls, blank + TAG)
            return rest
        self._call = JsonCall(self._num_calls, blank, self._names.__contains__)
        return "{" + rest

    def _end_if_over(self, call: JsonCall) -> None:
        if call.is_over:
            self._call = None
            self._is_after_call = call.is_call
            self._num_calls += call.is_call


def _matches(template: str) -> bool:
    return all(sign in template for sign in ("<|start_header_id|>", '"name"', '"parameters"'))


LLAMA_JSON = ToolFormat(
    names=("llama3_json", "llama4_json"),
    parser=LlamaJsonParser,
    matches_template=_matches,
    constraint=DelimitedCalls(
        begin=lambda name: f'{{"name": {quoted(name)}, "parameters": ',
        end="}",
        separator="; ",
    ),
    needs_special_tokens=True,
)
