"""Qwen3-Coder: calls as delimited text, with each parameter's value unquoted.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

Models sometimes omit delimiters: the first and the last, and the end of the last value, may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeAlias

from engine.text.parsers.delimiters import first_delimiter, held_back
from engine.text.parsers.events import CallArguments, CallBegun, CallEnded, TextPiece, Tool, ToolEvent
from engine.text.parsers.parameter_values import ParameterSchemas, is_plain_string, to_json
from engine.text.parsers.text_scanner import TextScanner
from engine.text.parsers.tool_constraints import DelimitedCalls
from engine.text.parsers.tool_format import ToolFormat

START, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_MAX_NAME = 1024  # characters

_Step: TypeAlias = Callable[[str, list[ToolEvent]], str]


class QwenCoderParser:
    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {
            tool["function"]["name"]: ParameterSchemas(tool["function"].get("parameters")) for tool in tools
        }
        self._scanner = TextScanner((START, FUNCTION))
        self._step: _Step = self._outside
        self._held = ""
        self._prefix = ""  # the delimiters before the name of a possible call
        self._body = TextScanner(())  # of the current call, between its parameters
        self._schemas = ParameterSchemas(None)
        self._value: _Value | None = None
        self._num_calls = 0
        self._num_parameters = 0

    def feed(self, text: str) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        while text:
            text, self._held = self._held + text, ""
            text = self._step(text, events)
        return events

    def finish(self) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        if self._value is not None:  # cut off: the arguments stay unterminated
            self._add_arguments(self._value.cut_off(), events)
            events.append(CallEnded(self._num_calls))
        elif self._step == self._between:
            self._end_call(events)
        elif self._step == self._key:
            events.append(TextPiece(PARAMETER + self._held))
            self._end_call(events)
        elif self._step in (self._opened, self._name):
            events.append(TextPiece(self._prefix + self._held))
        elif self._step == self._outside:
            events += self._scanner.finish(after_call=self._num_calls > 0)
        self._step, self._value, self._held = self._outside, None, ""
        return events

    def _outside(self, text: str, events: list[ToolEvent]) -> str:
        delimiter, rest = self._scanner.feed(text, events)
        if delimiter:
            self._prefix = self._scanner.pop_blanks() + delimiter
            self._step = self._opened if delimiter == START else self._name
        return rest

    def _opened(self, text: str, events: list[ToolEvent]) -> str:
        """After the first delimiter: the function's."""
        body = text.lstrip()
        if len(body) < len(FUNCTION) and FUNCTION.startswith(body):
            self._held = text
            return ""
        if not body.startswith(FUNCTION):
            return self._reject(text, events)
        self._prefix += text[: len(text) - len(body)] + FUNCTION
        self._step = self._name
        return body[len(FUNCTION) :]

    def _name(self, text: str, events: list[ToolEvent]) -> str:
        name, is_whole = _read_name(text)
        if name is None or (is_whole and not self._may_begin(name)):
            return self._reject(text, events)
        if not is_whole:
            self._held = text
            return ""
        events += [CallBegun(self._num_calls, name), CallArguments(self._num_calls, "{")]
        self._schemas = self._tools.get(name) or ParameterSchemas(None)
        self._body = TextScanner((PARAMETER, FUNCTION_END, END))
        self._num_parameters = 0
        self._step = self._between
        return text[len(name) + 1 :]

    def _may_begin(self, name: str) -> bool:
        """A function's delimiter alone, which a text may mention, begins a call only if it names a tool."""
        return bool(name) and (START in self._prefix or name in self._tools)

    def _reject(self, text: str, events: list[ToolEvent]) -> str:
        events.append(TextPiece(self._prefix))
        self._prefix = ""
        self._step = self._outside
        return text

    def _between(self, text: str, events: list[ToolEvent]) -> str:
        """Between parameters; anything else there is reported as text."""
        delimiter, rest = self._body.feed(text, events)
        if delimiter == PARAMETER:
            self._step = self._key
        elif delimiter:
            self._end_call(events)
            self._step = self._after_function if delimiter == FUNCTION_END else self._outside
        return rest

    def _end_call(self, events: list[ToolEvent]) -> None:
        self._add_arguments("}", events)
        events.append(CallEnded(self._num_calls))
        self._num_calls += 1

    def _key(self, text: str, events: list[ToolEvent]) -> str:
        key, is_whole = _read_name(text)
        if key is None:
            events.append(TextPiece(PARAMETER))
            self._step = self._between
            return text
        if not is_whole:
            self._held = text
            return ""
        comma = ", " if self._num_parameters else ""
        self._add_arguments(f"{comma}{json.dumps(key, ensure_ascii=False)}: ", events)
        self._num_parameters += 1
        self._value = _Value(self._schemas, key)
        self._step = self._read_value
        return text[len(key) + 1 :]

    def _read_value(self, text: str, events: list[ToolEvent]) -> str:
        if self._value is None:
            return text
        fragment, rest = self._value.feed(text)
        self._add_arguments(fragment, events)
        if self._value.is_over:
            self._value = None
            self._step = self._between
        return rest

    def _add_arguments(self, fragment: str, events: list[ToolEvent]) -> None:
        if fragment:
            events.append(CallArguments(self._num_calls, fragment))

    def _after_function(self, text: str, events: list[ToolEvent]) -> str:
        """After a function's end: skip the call's end if it follows."""
        body = text.lstrip()
        if len(body) < len(END) and END.startswith(body):
            self._held = text
            return ""
        self._step = self._outside
        return body.removeprefix(END)


class _Value:
    """One parameter's value: reported as it arrives if it is text in any case, else once it is complete."""

    def __init__(self, schemas: ParameterSchemas, key: str) -> None:
        self._schemas = schemas.find(key)
        self._is_plain = is_plain_string(self._schemas)
        ends = (PARAMETER_END, f"{FUNCTION_END}\n{END}")
        followers = tuple(f"\n{PARAMETER}{name}>" for name in schemas.names)
        # For plain text, the line break before an end belongs to the end.
        self._delimiters = (
            (*ends, *(f"\n{end}" for end in ends), *followers) if self._is_plain else (*ends, *followers)
        )
        self._written = ""
        self._held = ""
        self._is_first = True
        self.is_over = False

    def feed(self, text: str) -> tuple[str, str]:
        """A fragment of JSON, and what follows the value once it `is_over`."""
        text, self._held = self._held + text, ""
        found = first_delimiter(text, self._delimiters)
        if found is None:
            end = len(text) - held_back(text, self._delimiters)
            self._held = text[end:]
            return self._to_fragment(text[:end]), ""
        at, delimiter = found
        self.is_over = True
        fragment = self._to_fragment(text[:at]) + self._close()
        rest = text[at + len(delimiter) :]
        return fragment, rest if delimiter.endswith(PARAMETER_END) else delimiter.lstrip() + rest

    def cut_off(self) -> str:
        """The unreported rest, for an output that ends inside the value."""
        return self._to_fragment(self._held) + (self._written if not self._is_plain else "")

    def _to_fragment(self, text: str) -> str:
        if not self._is_plain:
            self._written += text
            return ""
        if not text:
            return ""
        quote = '"' if self._is_first else ""
        text = text.removeprefix("\n") if self._is_first else text
        self._is_first = False
        return quote + json.dumps(text, ensure_ascii=False)[1:-1]

    def _close(self) -> str:
        if not self._is_plain:
            return to_json(self._written, self._schemas)
        return '""' if self._is_first else '"'


def _read_name(text: str) -> tuple[str | None, bool]:
    """The name before `>`, and whether it is complete; None if it can't be a name."""
    name, end, _ = text.partition(">")
    if "\n" in name or "<" in name or len(name) > _MAX_NAME:
        return None, True
    return name, bool(end)


QWEN_CODER = ToolFormat(
    names=("qwen3_coder", "qwen3_xml"),
    parser=QwenCoderParser,
    matches_template=lambda template: FUNCTION in template and PARAMETER in template,
    constraint=DelimitedCalls(
        begin=lambda name: f"{START}\n{FUNCTION}{name}>\n",
        end=f"\n{FUNCTION_END}\n{END}",
        separator="\n",
        trigger=START,
        style={"style": "qwen_xml"},
        impossible="<>\n",
    ),
)
