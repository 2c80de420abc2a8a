"""What constraints for tool calls are made of: the tools' schemas between a format's delimiters.

Written as xgrammar's structural tags: text in which delimited parts follow a grammar. Delimiters that are
special tokens have no text that a grammar could match, so the constraint uses the form without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from engine.errors import InvalidRequest
from engine.text.parsers.events import Tool

TagFormat: TypeAlias = dict[str, Any]
_ADVICE = "with strict: false, a call follows the rest of the schema"


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """The schema of an answer without calls."""

    schema: Any
    param: str  # the field it comes from
    is_strict: bool
    advice: str

    @property
    def content(self) -> TagFormat:
        about = {"param": self.param, "is_strict": self.is_strict, "advice": self.advice}
        return {"type": "json_schema", "json_schema": self.schema, "tool": about}


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool that may be called."""

    name: str
    schema: dict[str, Any]  # of its arguments, an object
    param: str  # the field it comes from
    is_strict: bool  # whether a part of the schema that can't be enforced is an error

    @staticmethod
    def of(tool: Tool, param: str, *, is_forced: bool) -> ToolSchema:
        """Forced calls follow their schema exactly, unless the tool has `strict: false`, and a strict tool's
        calls always do. For all other calls the schema is a description rather than a requirement."""
        function = tool["function"]
        strict = function.get("strict")
        is_strict = is_forced if strict is None else strict
        parameters = function.get("parameters") or {"properties": {}}  # none: no arguments
        kind = parameters.get("type", "object")
        types = [str(name).lower() for name in (kind if isinstance(kind, list) else [kind])]
        if "object" not in types and is_strict:
            raise InvalidRequest(
                f"{param}.parameters.type is {kind!r}: a tool's parameters must be an object.",
                param=f"{param}.parameters.type",
            )
        return ToolSchema(function["name"], {**parameters, "type": "object"}, param, is_strict)

    @property
    def as_promised(self) -> ToolSchema:
        """Leaves the arguments to the model unless the tool is strict."""
        return self if self.is_strict else replace(self, schema={"type": "object"})

    def content(self, **more: Any) -> TagFormat:
        about = {"param": f"{self.param}.parameters", "is_strict": self.is_strict, "advice": _ADVICE}
        return {"type": "json_schema", "json_schema": self.schema, "tool": about, **more}


@dataclass(frozen=True, slots=True, kw_only=True)
class DelimitedCalls:
    """A format's constraint if each of its calls stands between two delimiters."""

    begin: Callable[[str], str]  # from the tool's name
    end: str
    separator: str  # between calls
    trigger: str | None = None  # begins a call in a text; None = the whole beginning does
    style: Mapping[str, str] = field(default_factory=dict)  # of the arguments, if they aren't JSON
    impossible: str = ""  # characters that a name can't have in this format

    def __call__(self, tools: Sequence[ToolSchema], is_auto: bool, parallel: bool) -> TagFormat:
        tags = [self._tag(tool) for tool in tools]
        if is_auto:  # any text, in which a trigger begins a call
            triggers = sorted({tag["begin"] for tag in tags}) if self.trigger is None else [self.trigger]
            kind: TagFormat = {"type": "triggered_tags", "triggers": triggers}
        else:
            kind = {"type": "tags_with_separator", "separator": self.separator, "at_least_one": True}
        return {**kind, "tags": tags, "stop_after_first": not parallel}

    def _tag(self, tool: ToolSchema) -> TagFormat:
        if unfit := [character for character in self.impossible if character in tool.name]:
            raise InvalidRequest(
                f"{tool.param}.name contains {unfit[0]!r}, which is impossible in this model's call format.",
                param=f"{tool.param}.name",
            )
        return call_tag(self.begin(tool.name), tool.content(**self.style), self.end)


def call_tag(begin: str, content: TagFormat, end: str) -> TagFormat:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
