"""Maps the tools of a Responses request to a chat's functions, and calls of those back to the tools. Pure.

A custom tool is a function whose only argument is its text. A tool in a namespace has the namespace as a
prefix of its name. A local shell is a function that takes a command.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from api.protocols.responses.request import invalid, string_of

INPUT = "input"  # a custom tool's argument
LOCAL_SHELL = "local_shell"
TOOL_SEARCH = "tool_search"

_BARE_NAMESPACE = "functions"  # Codex's name for tools outside any namespace
_SHELL_DESCRIPTION = "Runs a command on the user's machine and returns its output."
_SHELL_PARAMETERS = {
    "type": "object",
    "properties": {
        "command": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The program, its arguments",
        },
        "working_directory": {"type": "string"},
        "timeout_ms": {"type": "integer"},
    },
    "required": ["command"],
}


@dataclass(frozen=True, slots=True)
class ToolFunction:
    """A function that is offered to the model, and the tool behind it."""

    type: str  # function, custom, tool_search or local_shell
    name: str
    namespace: str | None
    function: Mapping[str, Any]  # as a chat has it


class Toolbox:
    """The functions of a request, by their names for the model."""

    def __init__(self, ignored: MutableMapping[str, str]) -> None:
        self._functions: dict[str, ToolFunction] = {}
        self._ignored = ignored

    def add(self, tools: Any, path: str, *, replaces: bool) -> None:
        """`replaces`: a tool may redefine an earlier one. Raises InvalidProtocolRequest."""
        if not isinstance(tools, list):
            raise invalid(path, "must be a list of tools")
        for number, tool in enumerate(tools):
            where = f"{path}[{number}]"
            for function in self._functions_of(tool, where):
                name = function.function["name"]
                if name in self._functions and not replaces:
                    raise invalid(f"{where}.name", f"two tools have the name {name!r}")
                self._functions[name] = function

    def get(self, name: str) -> ToolFunction | None:
        return self._functions.get(name)

    @property
    def functions(self) -> list[dict[str, Any]]:
        """As a chat takes them."""
        return [{"type": "function", "function": each.function} for each in self._functions.values()]

    def choose(self, choice: Any) -> Any:
        """A chat's tool choice, None = none is needed. Tools that the choice does not allow are removed."""
        if choice is None:
            return None
        if isinstance(choice, str):
            return self._mode(choice)
        kind = choice.get("type")
        if kind in ("function", "custom"):
            name = string_of(choice, "name", "tool_choice")
            return self._named(function_name(name, choice.get("namespace")), kind, name)
        if kind == LOCAL_SHELL and self.get(LOCAL_SHELL) is not None:
            return self._named(LOCAL_SHELL, kind, LOCAL_SHELL)
        if kind == "allowed_tools":
            self._allow(choice.get("tools"))
            return self._mode(choice.get("mode"))
        raise invalid("tool_choice.type", f"tools of type {str(kind)[:40]!r} can't run on this server")

    def _mode(self, mode: Any) -> str | None:
        if mode not in ("none", "auto", "required"):
            raise invalid("tool_choice", f"must be none, auto, required or a tool, not {mode!r}")
        if mode == "required" and not self._functions:
            raise invalid("tool_choice", "it requires a tool call, but no tool can be called")
        return str(mode) if self._functions else None

    def _named(self, name: str, kind: str, shown: str) -> dict[str, Any]:
        found = self.get(name)
        if found is None or found.type != kind:
            raise invalid("tool_choice.name", f"{shown!r} is not one of the {kind} tools")
        return {"type": "function", "function": {"name": name}}

    def _allow(self, tools: Any) -> None:
        if not isinstance(tools, list):
            raise invalid("tool_choice.tools", "must be a list of tools")
        allowed = {name for tool in tools if isinstance(tool, Mapping) for name in self._named_by(tool)}
        self._functions = {name: each for name, each in self._functions.items() if name in allowed}

    def _named_by(self, tool: Mapping[str, Any]) -> Iterable[str]:
        kind, name = tool.get("type"), tool.get("name")
        if kind == "namespace":
            return [key for key, each in self._functions.items() if each.namespace == name]
        if kind in (LOCAL_SHELL, TOOL_SEARCH):
            return [str(kind)]
        return [function_name(name, tool.get("namespace"))] if isinstance(name, str) else []

    def _functions_of(self, tool: Any, path: str) -> Iterator[ToolFunction]:
        if not isinstance(tool, Mapping):
            raise invalid(path, "must be an object")
        kind = tool.get("type")
        if kind == "namespace":
            yield from self._in_namespace(tool, path)
        elif kind == "function":
            name = string_of(tool, "name", path)
            fields = {
                each: tool[each]
                for each in ("description", "parameters", "strict")
                if tool.get(each) is not None
            }
            yield ToolFunction("function", name, None, {"name": name, **fields})
        elif kind == "custom":
            name = string_of(tool, "name", path)
            yield ToolFunction("custom", name, None, self._custom(tool, name, path))
        elif kind == LOCAL_SHELL:
            shell = {"description": _SHELL_DESCRIPTION, "parameters": _SHELL_PARAMETERS}
            yield ToolFunction(kind, kind, None, {"name": kind, **shell})
        elif kind == TOOL_SEARCH and tool.get("execution") == "client":
            fields = {
                each: tool[each] for each in ("description", "parameters") if tool.get(each) is not None
            }
            yield ToolFunction(kind, kind, None, {"name": kind, **fields})
        elif isinstance(kind, str):
            self._ignored[path] = f"a tool of type {kind[:40]} can't run on this server"
        else:
            raise invalid(f"{path}.type", "must be a string")

    def _in_namespace(self, tool: Mapping[str, Any], path: str) -> Iterator[ToolFunction]:
        namespace = string_of(tool, "name", path)
        children = tool.get("tools") or []
        if not isinstance(children, list):
            raise invalid(f"{path}.tools", "must be a list of tools")
        for number, child in enumerate(children):
            for each in self._functions_of(child, f"{path}.tools[{number}]"):
                if namespace == _BARE_NAMESPACE:
                    yield each
                else:
                    function = {**each.function, "name": function_name(each.name, namespace)}
                    yield replace(each, namespace=namespace, function=function)

    def _custom(self, tool: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
        text: dict[str, Any] = {"type": "string"}
        description = [str(tool.get("description") or ""), f"Its text is the argument `{INPUT}`."]
        form = tool.get("format") or {}
        if isinstance(form, Mapping) and form.get("type") == "grammar":
            if form.get("syntax") == "regex":
                text["pattern"] = f"^(?:{form.get('definition')})$"
            else:
                self._ignored[f"{path}.format"] = "a Lark grammar is shown to the model, not enforced"
                description.append(f"The text follows this Lark grammar:\n{form.get('definition')}")
        parameters = {"type": "object", "properties": {INPUT: text}, "required": [INPUT]}
        return {
            "name": name,
            "description": "\n\n".join(part for part in description if part),
            "parameters": {**parameters, "additionalProperties": False},
        }


def function_name(name: str, namespace: Any = None) -> str:
    """The function's name for the model, in the style of MCP clients: `server__tool`."""
    if not isinstance(namespace, str) or namespace in ("", _BARE_NAMESPACE):
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def custom_arguments(text: str) -> str:
    return json.dumps({INPUT: text}, ensure_ascii=False)


def runnable(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools as a response repeats them: without those that were ignored."""
    known = ("function", "custom", "namespace", LOCAL_SHELL, TOOL_SEARCH)
    return [dict(tool) for tool in tools if tool.get("type") in known]
