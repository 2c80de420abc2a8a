"""Constraints for tool calls: the format's delimiters with the tools' schemas between them.

Written as xgrammar's structural tags: text in which delimited parts follow a grammar. Delimiters that are
special tokens have no text that a grammar could match, so the constraint uses the form without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from engine.errors import InvalidRequest
from engine.text.parsers.events import Tool

_Format: TypeAlias = dict[str, Any]
_ADVICE = "with strict: false, a call follows the rest of the schema"


def call_constraint(name: str, tools: Mapping[str, Tool], choice: str, *, parallel: bool) -> str | None:
    """The structural tag, as JSON, for a tool parser's format; None if that format can't be enforced.

    `tools`: by their paths, for errors. `choice`: "required" (at least one call), "auto" (text, and valid
    calls), or a tool's name.
    Raises InvalidRequest for a tool that can't be written in this format.
    """
    build = _FORMATS.get(name)
    if build is None:
        return None
    wanted = [
        _ToolSchema.of(tool, f"{path}.function", is_forced=choice != "auto")
        for path, tool in tools.items()
        if choice in ("required", "auto", tool["function"]["name"])
    ]
    return _as_tag(build(wanted, choice == "auto", parallel))


def answer_or_calls(
    name: str, tools: Mapping[str, Tool], answer: AnswerSchema, *, parallel: bool
) -> str | None:
    """The same for an answer that follows a schema, if the model may call tools instead."""
    build = _FORMATS.get(name)
    if build is None:
        return None
    wanted = [_ToolSchema.of(tool, f"{path}.function", is_forced=False) for path, tool in tools.items()]
    calls = build([tool.as_promised for tool in wanted], False, parallel)
    return _as_tag(calls and {"type": "or", "elements": [answer.content, calls]})


def _as_tag(form: _Format | None) -> str | None:
    return None if form is None else json.dumps({"type": "structural_tag", "format": form})


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """The schema of an answer without calls."""

    schema: Any
    param: str  # the field it comes from
    is_strict: bool
    advice: str

    @property
    def content(self) -> _Format:
        about = {"param": self.param, "is_strict": self.is_strict, "advice": self.advice}
        return {"type": "json_schema", "json_schema": self.schema, "tool": about}


@dataclass(frozen=True, slots=True)
class _ToolSchema:
    """A tool that may be called."""

    name: str
    schema: dict[str, Any]  # of its arguments, an object
    param: str  # the field it comes from
    is_strict: bool  # whether a part of the schema that can't be enforced is an error

    @staticmethod
    def of(tool: Tool, param: str, *, is_forced: bool) -> _ToolSchema:
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
        return _ToolSchema(function["name"], {**parameters, "type": "object"}, param, is_strict)

    @property
    def as_promised(self) -> _ToolSchema:
        """Leaves the arguments to the model unless the tool is strict."""
        return self if self.is_strict else replace(self, schema={"type": "object"})

    def content(self, **more: Any) -> _Format:
        about = {"param": f"{self.param}.parameters", "is_strict": self.is_strict, "advice": _ADVICE}
        return {"type": "json_schema", "json_schema": self.schema, "tool": about, **more}


def _hermes(wanted: Sequence[_ToolSchema], is_auto: bool, parallel: bool) -> _Format:
    tags = [
        _tag(f'<tool_call>\n{{"name": {_quoted(tool.name)}, "arguments": ', _json(tool), "}\n</tool_call>")
        for tool in wanted
    ]
    return _triggered(["<tool_call>"], tags, parallel) if is_auto else _calls(tags, "\n", parallel)


def _qwen_coder(wanted: Sequence[_ToolSchema], is_auto: bool, parallel: bool) -> _Format:
    for tool in wanted:
        if unfit := [character for character in "<>\n" if character in tool.name]:
            raise InvalidRequest(
                f"{tool.param}.name contains {unfit[0]!r}, which is impossible in this model's call format.",
                param=f"{tool.param}.name",
            )
    tags = [
        _tag(f"<tool_call>\n<function={tool.name}>\n", _xml(tool), "\n</function>\n</tool_call>")
        for tool in wanted
    ]
    return _triggered(["<tool_call>"], tags, parallel) if is_auto else _calls(tags, "\n", parallel)


def _llama_json(wanted: Sequence[_ToolSchema], is_auto: bool, parallel: bool) -> _Format:
    tags = [_tag(f'{{"name": {_quoted(tool.name)}, "parameters": ', _json(tool), "}") for tool in wanted]
    if is_auto:  # JSON that isn't a call stays possible
        return _triggered(sorted({tag["begin"] for tag in tags}), tags, parallel)
    return _calls(tags, "; ", parallel)


def _mistral(wanted: Sequence[_ToolSchema], is_auto: bool, parallel: bool) -> _Format | None:
    if is_auto:
        return None  # calls begin with a special token
    tags = [_tag(f'{{"name": {_quoted(tool.name)}, "arguments": ', _json(tool), "}") for tool in wanted]
    return _tag("[", _calls(tags, ", ", parallel), "]")


_FORMATS: dict[str, Callable[[Sequence[_ToolSchema], bool, bool], _Format | None]] = {
    "hermes": _hermes,
    "qwen3_json": _hermes,
    "qwen3_coder": _qwen_coder,
    "qwen3_xml": _qwen_coder,
    "llama3_json": _llama_json,
    "llama4_json": _llama_json,
    "mistral": _mistral,
}


def _tag(begin: str, content: _Format, end: str) -> _Format:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def _calls(tags: list[_Format], separator: str, parallel: bool) -> _Format:
    """At least one call, and nothing else."""
    return {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": not parallel,
    }


def _triggered(triggers: list[str], tags: list[_Format], parallel: bool) -> _Format:
    """Any text; a trigger in it begins one of the tags."""
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags, "stop_after_first": not parallel}


def _json(tool: _ToolSchema) -> _Format:
    return tool.content()


def _xml(tool: _ToolSchema) -> _Format:
    return tool.content(style="qwen_xml")


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
