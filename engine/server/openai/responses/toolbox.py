"""How each tool of /v1/responses is offered to a chat, which knows functions alone.

A custom tool is a function whose one argument is its free text, a tool search that the client runs one with
the client's parameters, and a namespace's tools have its name before theirs. `Offered` says how a call of
such a function is written back in the client's words.
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
"""Codex's name for tools that stand in no namespace: calls have their bare names."""

_INPUT = "input"


@dataclass(frozen=True, slots=True)
class Offered:
    """A function that the model is offered, and the tool that it stands for."""

    type: Literal["function", "custom", "tool_search"]
    name: str
    namespace: str | None
    function: dict[str, Any]  # as a chat has it
    path: str  # of the tool, in the client's body


class Toolbox:
    """What a request offers the model, by the name that the model sees."""

    def __init__(self) -> None:
        self._offered: dict[str, Offered] = {}

    def add(self, tools: Iterable[Any], path: str, *, replaces: bool) -> None:
        """`replaces`: a tool may be given anew. Raises InvalidRequest where it may not."""
        for number, tool in enumerate(tools):
            for offered in _offer(tool, f"{path}[{number}]"):
                name = offered.function["name"]
                if name in self._offered and not replaces:
                    raise InvalidRequest("Two tools have the same name.", param=path)
                self._offered[name] = offered

    def get(self, name: str) -> Offered | None:
        return self._offered.get(name)

    def __len__(self) -> int:
        return len(self._offered)

    @property
    def functions(self) -> list[dict[str, Any]]:
        """As a chat takes them."""
        return [{"type": "function", "function": one.function} for one in self._offered.values()]

    @property
    def paths(self) -> list[str]:
        return [one.path for one in self._offered.values()]

    def choose(self, choice: Any) -> Any:
        """A tool choice as chats have it; of tools that aren't allowed, none is offered any more.

        Raises InvalidRequest for a tool that isn't here.
        """
        match choice:
            case NamedChoice():
                return {"type": "function", "function": {"name": self._find(choice)}}
            case AllowedChoice():
                self._allow(choice.tools)
                return choice.mode
            case HostedChoice():
                raise InvalidRequest(
                    f"tool_choice: a tool of type {choice.type[:40]!r} can't run here, nor be forced.",
                    param="tool_choice.type",
                )
        return choice

    def _find(self, choice: NamedChoice) -> str:
        wanted = function_name(choice.name, choice.namespace)
        found = self._offered.get(wanted)
        if found is None or found.type != choice.type:
            raise InvalidRequest(
                f"There is no {choice.type} tool {choice.name!r} among the tools given.",
                param="tool_choice.name",
            )
        return wanted

    def _allow(self, tools: Sequence[Mapping[str, Any]]) -> None:
        allowed = set()
        for tool in tools:
            name, namespace, kind = (tool.get(word) for word in ("name", "namespace", "type"))
            if kind == "namespace":
                allowed |= {key for key, one in self._offered.items() if one.namespace == name}
            elif kind == "tool_search":
                allowed |= {key for key, one in self._offered.items() if one.type == kind}
            elif isinstance(name, str):
                allowed.add(function_name(name, namespace))
        self._offered = {name: one for name, one in self._offered.items() if name in allowed}


def function_name(name: str, namespace: Any = None) -> str:
    """What the model calls a tool: as MCP's clients write it, `server__tool`."""
    if not isinstance(namespace, str) or namespace in ("", BARE_NAMESPACE):
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def custom_arguments(text: str) -> str:
    return json.dumps({_INPUT: text}, ensure_ascii=False)


def _offer(tool: Any, path: str) -> list[Offered]:
    match tool:
        case NamespaceTool():
            within = [
                one
                for number, child in enumerate(tool.tools)
                for one in _offer(child, f"{path}.tools[{number}]")
            ]
            return [_in_namespace(one, tool.name) for one in within]
        case ForeignTool():
            report_ignored(path, f"a tool of type {tool.type[:40]} can't run here")
            return []
        case CustomTool():
            return [Offered("custom", tool.name, None, _custom_function(tool, path), path)]
        case ToolSearchTool():
            if tool.execution != "client":
                report_ignored(path, "only the client could run a tool search here: all tools are shown")
                return []
            function = tool.model_dump(include={"description", "parameters"}, exclude_none=True)
            return [Offered("tool_search", tool.type, None, {"name": tool.type, **function}, path)]
    function = tool.model_dump(exclude={"type"}, exclude_none=True)
    return [Offered("function", tool.name, None, function, path)]


def _in_namespace(one: Offered, namespace: str) -> Offered:
    if namespace == BARE_NAMESPACE:
        return one
    function = {**one.function, "name": function_name(one.name, namespace)}
    return Offered(one.type, one.name, namespace, function, one.path)


def _custom_function(tool: CustomTool, path: str) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    about = [tool.description or "", f"Its text is the argument `{_INPUT}`."]
    strict = {}
    if isinstance(tool.format, GrammarFormat):
        if tool.format.syntax == "regex":
            text["pattern"] = f"^(?:{tool.format.definition})$"
            strict = {"strict": True}
        else:
            report_ignored(f"{path}.format", "a Lark grammar is shown to the model, not enforced")
            about.append(f"The text follows this Lark grammar:\n{tool.format.definition}")
    return {
        "name": tool.name,
        "description": "\n\n".join(part for part in about if part),
        "parameters": {
            "type": "object",
            "properties": {_INPUT: text},
            "required": [_INPUT],
            "additionalProperties": False,
        },
        **strict,
    }
