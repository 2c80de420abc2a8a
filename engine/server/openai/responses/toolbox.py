"""Maps the tools of /v1/responses to the functions of a chat.

A custom tool becomes a function whose only argument is free text; a client-side tool search becomes a
function with the client's parameters; tools in a namespace get its name as a prefix. `ToolFunction` says how
to write back a call of such a function.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import InvalidRequest
from engine.server.openai.responses.tools import (
    AllowedChoice,
    CustomTool,
    ForeignTool,
    GrammarFormat,
    HostedChoice,
    NamedChoice,
    NamespaceTool,
    ToolSearchTool,
)
from engine.server.protocol.unknown_fields import report_ignored

BARE_NAMESPACE = "functions"
"""Codex's name for tools outside any namespace: their functions have no prefix."""

_INPUT = "input"


@dataclass(frozen=True, slots=True)
class ToolFunction:
    """A function offered to the model, and the tool behind it."""

    type: Literal["function", "custom", "tool_search"]
    name: str
    namespace: str | None
    function: dict[str, Any]  # in chat format
    path: str  # the tool's path in the body


class Toolbox:
    """The functions that a request offers to the model, by name."""

    def __init__(self) -> None:
        self._functions: dict[str, ToolFunction] = {}

    def add(self, tools: Iterable[Any], path: str, *, replaces: bool) -> None:
        """`replaces`: a tool may redefine an earlier one. Otherwise raises InvalidRequest for duplicates."""
        for number, tool in enumerate(tools):
            for tool_function in _to_functions(tool, f"{path}[{number}]"):
                name = tool_function.function["name"]
                if name in self._functions and not replaces:
                    raise InvalidRequest(f"{path}: two tools have the name {name!r}.", param=path)
                self._functions[name] = tool_function

    def get(self, name: str) -> ToolFunction | None:
        return self._functions.get(name)

    def __len__(self) -> int:
        return len(self._functions)

    @property
    def functions(self) -> list[dict[str, Any]]:
        """As a chat takes them."""
        return [{"type": "function", "function": function.function} for function in self._functions.values()]

    @property
    def paths(self) -> list[str]:
        return [function.path for function in self._functions.values()]

    def choose(self, choice: Any) -> Any:
        """The tool choice in chat format; tools that it does not allow are removed.

        Raises InvalidRequest for an unknown tool.
        """
        match choice:
            case NamedChoice():
                return {"type": "function", "function": {"name": self._find(choice)}}
            case AllowedChoice():
                self._allow(choice.tools)
                return choice.mode
            case HostedChoice():
                raise InvalidRequest(
                    f"tool_choice.type: tools of type {choice.type[:40]!r} can't run on this server.",
                    param="tool_choice.type",
                )
        return choice

    def _find(self, choice: NamedChoice) -> str:
        wanted = function_name(choice.name, choice.namespace)
        found = self._functions.get(wanted)
        if found is None or found.type != choice.type:
            raise InvalidRequest(
                f"tool_choice.name: {choice.name!r} is not one of the {choice.type} tools.",
                param="tool_choice.name",
            )
        return wanted

    def _allow(self, tools: Sequence[Mapping[str, Any]]) -> None:
        allowed = set()
        for tool in tools:
            name, namespace, kind = (tool.get(field) for field in ("name", "namespace", "type"))
            if kind == "namespace":
                allowed |= {key for key, function in self._functions.items() if function.namespace == name}
            elif kind == "tool_search":
                allowed |= {key for key, function in self._functions.items() if function.type == kind}
            elif isinstance(name, str):
                allowed.add(function_name(name, namespace))
        self._functions = {name: function for name, function in self._functions.items() if name in allowed}


def function_name(name: str, namespace: Any = None) -> str:
    """The function's name for the model, in the style of MCP clients: `server__tool`."""
    if not isinstance(namespace, str) or namespace in ("", BARE_NAMESPACE):
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def custom_arguments(text: str) -> str:
    return json.dumps({_INPUT: text}, ensure_ascii=False)


def _to_functions(tool: Any, path: str) -> list[ToolFunction]:
    match tool:
        case NamespaceTool():
            within = [
                function
                for number, child in enumerate(tool.tools)
                for function in _to_functions(child, f"{path}.tools[{number}]")
            ]
            return [_in_namespace(function, tool.name) for function in within]
        case ForeignTool():
            report_ignored(path, f"a tool of type {tool.type[:40]} can't run on this server")
            return []
        case CustomTool():
            return [ToolFunction("custom", tool.name, None, _custom_function(tool, path), path)]
        case ToolSearchTool():
            if tool.execution != "client":
                report_ignored(path, "only a client-side tool search is supported: all tools are shown")
                return []
            function = tool.model_dump(include={"description", "parameters"}, exclude_none=True)
            return [ToolFunction("tool_search", tool.type, None, {"name": tool.type, **function}, path)]
    function = tool.model_dump(exclude={"type"}, exclude_none=True)
    return [ToolFunction("function", tool.name, None, function, path)]


def _in_namespace(bare: ToolFunction, namespace: str) -> ToolFunction:
    if namespace == BARE_NAMESPACE:
        return bare
    function = {**bare.function, "name": function_name(bare.name, namespace)}
    return ToolFunction(bare.type, bare.name, namespace, function, bare.path)


def _custom_function(tool: CustomTool, path: str) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    description = [tool.description or "", f"Its text is the argument `{_INPUT}`."]
    strict = {}
    if isinstance(tool.format, GrammarFormat):
        if tool.format.syntax == "regex":
            text["pattern"] = f"^(?:{tool.format.definition})$"
            strict = {"strict": True}
        else:
            report_ignored(f"{path}.format", "a Lark grammar is shown to the model, not enforced")
            description.append(f"The text follows this Lark grammar:\n{tool.format.definition}")
    return {
        "name": tool.name,
        "description": "\n\n".join(part for part in description if part),
        "parameters": {
            "type": "object",
            "properties": {_INPUT: text},
            "required": [_INPUT],
            "additionalProperties": False,
        },
        **strict,
    }
