"""Hermes and Qwen: any number of `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

from engine.text.parsers.events import TextPiece, ToolEvent
from engine.text.parsers.json_call import JsonCall
from engine.text.parsers.text_scanner import TextScanner
from engine.text.parsers.tool_constraints import DelimitedCalls, quoted
from engine.text.parsers.tool_format import ToolFormat

START, END = "<tool_call>", "</tool_call>"


class HermesParser:
    def __init__(self) -> None:
        self._scanner = TextScanner((START,))
        self._call: JsonCall | None = None
        self._after_object = ""  # after a call's object: blanks and what may become its end delimiter
        self._num_calls = 0

    def feed(self, text: str) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        while text:
            if self._call is None:
                delimiter, text = self._scanner.feed(text, events)
                if delimiter:
                    self._call = JsonCall(self._num_calls, self._scanner.pop_blanks() + START)
            elif not self._call.is_over:
                found, text = self._call.feed(text)
                events += found
            else:
                text = self._end(self._call, text, events)
        return events

    def finish(self) -> list[ToolEvent]:
        if self._call is None:
            return self._scanner.finish(after_call=self._num_calls > 0)
        if not self._call.is_over:
            return self._call.finish()
        rest = self._after_object
        return [TextPiece(rest)] if rest and not self._call.is_call else []

    def _end(self, call: JsonCall, text: str, events: list[ToolEvent]) -> str:
        """After an object: skip its end delimiter. If the object was not a call, all of it is text."""
        self._call = None
        if not call.is_call:
            return text
        text = self._after_object + text
        self._after_object = ""
        rest = text.lstrip()
        if len(rest) < len(END) and END.startswith(rest):
            self._after_object, self._call = text, call
            return ""
        self._num_calls += 1
        return rest.removeprefix(END)


def _matches(template: str) -> bool:
    return all(sign in template for sign in (START, '"name"', '"arguments"'))


HERMES = ToolFormat(
    names=("hermes", "qwen3_json"),
    parser=lambda tools: HermesParser(),
    matches_template=_matches,
    constraint=DelimitedCalls(
        begin=lambda name: f'{START}\n{{"name": {quoted(name)}, "arguments": ',
        end=f"}}\n{END}",
        separator="\n",
        trigger=START,
    ),
)
