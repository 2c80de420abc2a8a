"""Runs a parser on a text, whole or in pieces, and joins its events."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from engine.text.parsers.choice import named_format
from engine.text.parsers.events import (
    CallArguments,
    CallBegun,
    CallEnded,
    TextPiece,
    Tool,
    ToolEvent,
    ToolParser,
)
from engine.text.parsers.tools import TOOL_FORMATS


@dataclass
class ReadCall:
    name: str
    arguments: str = ""  # JSON, as far as it came
    has_ended: bool = False

    @property
    def value(self) -> Any:
        return json.loads(self.arguments)


@dataclass(frozen=True)
class Output:
    """Everything that a parser found: texts and calls in order."""

    parts: list[str | ReadCall]

    @property
    def calls(self) -> list[ReadCall]:
        return [part for part in self.parts if isinstance(part, ReadCall)]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def values(self) -> list[tuple[str, Any]]:
        return [(call.name, call.value) for call in self.calls]


def tool(name: str, parameters: Any = None) -> Tool:
    function = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
    return {"type": "function", "function": function}


def make_tool_parser(name: str, tools: Sequence[Tool]) -> ToolParser:
    return named_format(TOOL_FORMATS, name).parser(tools)


def read(name: str, pieces: Sequence[str], tools: Sequence[Tool] = ()) -> Output:
    """Parse with the parser of that name. Fails if the events are in an invalid order."""
    parser = make_tool_parser(name, tools)
    return put_together(events_of(parser, pieces))


def events_of(parser: ToolParser, pieces: Sequence[str]) -> list[ToolEvent]:
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()


def put_together(events: Sequence[ToolEvent]) -> Output:
    parts: list[str | ReadCall] = []
    calls: list[ReadCall] = []
    for event in events:
        match event:
            case TextPiece(text):
                assert text, "an empty text is no event"
                if parts and isinstance(parts[-1], str):
                    parts[-1] += text
                else:
                    parts.append(text)
            case CallBegun(index, name):
                assert index == len(calls) and all(call.has_ended for call in calls)
                calls.append(ReadCall(name))
                parts.append(calls[-1])
            case CallArguments(index, fragment):
                assert fragment, "an empty fragment is no event"
                assert index == len(calls) - 1 and not calls[index].has_ended
                calls[index].arguments += fragment
            case CallEnded(index):
                assert index == len(calls) - 1 and not calls[index].has_ended
                calls[index].has_ended = True
    assert all(call.has_ended for call in calls)
    return Output(parts)


def cut(text: str, at: Sequence[int]) -> list[str]:
    """Split into pieces that begin at these positions."""
    borders = [0, *sorted(min(place, len(text)) for place in at), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(borders)]


def cuts(max_length: int = 400) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, max_length), max_size=12)


def splits_of(text: str) -> list[list[str]]:
    """Split in two at every position, and into single characters."""
    return [[text[:at], text[at:]] for at in range(len(text) + 1)] + [list(text)]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(
        ["</tool_call>", "<tool_call>", '"}}', "\\", "{", "]", "[TOOL_CALLS]", "; ", "<think>", "\n", "🙂é"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=4)
NAMES = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.", min_size=1, max_size=20)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3)
