"""One call written as a JSON object, `{"name": …, "arguments": {…}}`, read piece by piece."""

from __future__ import annotations

import json
import re
from typing import Any

from engine.parsers.events import CallArguments, CallBegun, CallEnded, ToolEvent
from engine.parsers.json_scan import ValueScanner

_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)',
    re.DOTALL,
)


class JsonCall:
    """Arguments go out as they come, just as the model wrote them, once the name is known.

    Where the name comes last, or the arguments are no object, the whole is waited for.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._text = ""  # all of the object so far
        self._whole = ValueScanner()
        self._arguments: ValueScanner | None = None
        self.has_begun = False
        self.is_complete = False

    @property
    def text(self) -> str:
        """What was read, for a call that turns out to be none."""
        return self._text

    def feed(self, text: str) -> tuple[list[ToolEvent], str]:
        """Events, and the rest of `text` once the object is complete (`is_complete`)."""
        count = self._whole.feed(text)
        own, rest = text[:count], text[count:]
        self._text += own
        events: list[ToolEvent] = []
        if self._arguments is not None:
            events += self._pass_on(own)
        elif head := _HEAD.match(self._text):
            self.has_begun, self._arguments = True, ValueScanner()
            events.append(CallBegun(self._index, json.loads(head["name"])))
            events += self._pass_on(self._text[head.end() :])
        if self._whole.is_complete:
            self.is_complete = True
            events += self._end()
        return events, rest

    def _pass_on(self, text: str) -> list[ToolEvent]:
        if self._arguments is None or self._arguments.is_complete:
            return []
        fragment = text[: self._arguments.feed(text)]
        return [CallArguments(self._index, fragment)] if fragment else []

    def _end(self) -> list[ToolEvent]:
        if self.has_begun:
            return [CallEnded(self._index)]
        call = read_call(self._text)
        if call is None:
            return []
        self.has_begun = True
        name, arguments = call
        return [CallBegun(self._index, name), CallArguments(self._index, arguments), CallEnded(self._index)]


def read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments (as JSON) of a whole object; None if it is no call."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # JSON within JSON, as OpenAI's own format has it
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(arguments, dict):
        return None
    return value["name"], json.dumps(arguments, ensure_ascii=False)
