"""Tools and tool choices of Anthropic's messages, as a chat has them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from api.protocols.messages.request import CountRequest, invalid, string_of

_MODES = {"auto": "auto", "any": "required", "none": "none"}


def tool_fields(request: CountRequest, ignored: MutableMapping[str, str]) -> dict[str, Any]:
    """`tools`, `tool_choice` and `parallel_tool_calls`. Raises InvalidProtocolRequest."""
    functions = {}
    for number, tool in enumerate(request.tools or ()):
        path = f"tools[{number}]"
        kind = tool.get("type")
        if "input_schema" not in tool and kind not in (None, "custom", "function"):
            ignored[path] = f"a tool of type {str(kind)[:40]} can't run on this server"
            continue
        function = _function(tool, path)
        if function["name"] in functions:
            raise invalid(f"{path}.name", f"two tools have the name {function['name']!r}")
        functions[function["name"]] = {"type": "function", "function": function}
    fields: dict[str, Any] = {"tools": list(functions.values())} if functions else {}
    if request.tool_choice is not None:
        fields |= _choice_fields(request.tool_choice, request, functions.keys())
    return fields


def _function(tool: Mapping[str, Any], path: str) -> dict[str, Any]:
    schema = tool.get("input_schema")
    if not isinstance(schema, Mapping):
        raise invalid(f"{path}.input_schema", "must be a JSON schema")
    function = {"name": string_of(tool, "name", path), "parameters": schema}
    if not function["name"]:
        raise invalid(f"{path}.name", "must not be empty")
    if description := _description(tool, path):
        function["description"] = description
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return function


def _description(tool: Mapping[str, Any], path: str) -> str:
    description = str(tool.get("description") or "")
    if not (given := tool.get("input_examples")):
        return description
    if not isinstance(given, list):
        raise invalid(f"{path}.input_examples", "must be a list")
    examples = "\n".join(json.dumps(example, ensure_ascii=False) for example in given)
    return f"{description}\n\nExamples of its input:\n{examples}".strip()


def _choice_fields(choice: Mapping[str, Any], request: CountRequest, names: Any) -> dict[str, Any]:
    kind = choice.get("type")
    fields: dict[str, Any] = {}
    if choice.get("disable_parallel_tool_use"):
        fields["parallel_tool_calls"] = False
    if kind == "tool":
        name = string_of(choice, "name", "tool_choice")
        if name not in names:
            given = [tool.get("name") for tool in request.tools or ()]
            problem = "can't run on this server" if name in given else "is not one of the tools"
            raise invalid("tool_choice.name", f"{name[:80]!r} {problem}")
        return {**fields, "tool_choice": {"type": "function", "function": {"name": name}}}
    if not isinstance(kind, str) or kind not in _MODES:
        raise invalid("tool_choice.type", f"must be auto, any, tool or none, not {kind!r}")
    if kind == "any" and not names:
        problem = "none of the tools can run on this server" if request.tools else "there are no tools"
        raise invalid("tool_choice", f"it forces a tool call, but {problem}")
    # Without tools some engines refuse a choice.
    return {**fields, "tool_choice": _MODES[kind]} if names else {}
