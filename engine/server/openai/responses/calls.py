"""Writes the model's tool calls as items, in the format of their tool type. Pure."""

from __future__ import annotations

import json
from typing import Any, Protocol

from engine.server.openai.responses.custom_input import CustomInput
from engine.server.openai.responses.toolbox import ToolFunction


class CallWriter(Protocol):
    """Writes the item of one call."""

    @property
    def type(self) -> str:
        """The item's type."""

    @property
    def event(self) -> str | None:
        """The prefix of the call's event names; None if it has no events of its own."""

    @property
    def fields(self) -> dict[str, Any]:
        """The item's fields so far."""

    @property
    def done(self) -> dict[str, Any]:
        """The fields of the final event."""

    def feed(self, arguments: str) -> str:
        """Add a fragment of the model's JSON; the delta to send."""

    def finish(self) -> str:
        """The last delta."""


def make_call_writer(function: ToolFunction | None, name: str) -> CallWriter:
    """`function` is None if the model calls an unknown function; the client handles that."""
    if function is None:
        return _FunctionCallWriter({"name": name})
    name_fields = {"name": function.name, **({"namespace": function.namespace} if function.namespace else {})}
    match function.type:
        case "custom":
            return _CustomCallWriter(name_fields)
        case "tool_search":
            return _ToolSearchCallWriter()
    return _FunctionCallWriter(name_fields)


class _FunctionCallWriter:
    type = "function_call"
    event: str | None = "response.function_call_arguments"

    def __init__(self, name_fields: dict[str, Any]) -> None:
        self._name_fields = name_fields
        self._arguments = ""

    @property
    def fields(self) -> dict[str, Any]:
        return {**self._name_fields, "arguments": self._arguments}

    @property
    def done(self) -> dict[str, Any]:
        return {"arguments": self._arguments, "name": self._name_fields["name"]}

    def feed(self, arguments: str) -> str:
        self._arguments += arguments
        return arguments

    def finish(self) -> str:
        return ""


class _CustomCallWriter:
    type = "custom_tool_call"
    event: str | None = "response.custom_tool_call_input"

    def __init__(self, name_fields: dict[str, Any]) -> None:
        self._name_fields = name_fields
        self._input = CustomInput()

    @property
    def fields(self) -> dict[str, Any]:
        return {**self._name_fields, "input": self._input.text}

    @property
    def done(self) -> dict[str, Any]:
        return {"input": self._input.text}

    def feed(self, arguments: str) -> str:
        return self._input.feed(arguments)

    def finish(self) -> str:
        return self._input.finish()


class _ToolSearchCallWriter:
    """The client runs the search; the arguments are an object, sent when complete."""

    type = "tool_search_call"
    event: str | None = None

    def __init__(self) -> None:
        self._raw = ""

    @property
    def fields(self) -> dict[str, Any]:
        return {"execution": "client", "arguments": self._parsed()}

    @property
    def done(self) -> dict[str, Any]:
        return {}

    def feed(self, arguments: str) -> str:
        self._raw += arguments
        return ""

    def finish(self) -> str:
        return ""

    def _parsed(self) -> Any:
        try:
            return json.loads(self._raw or "{}")
        except (ValueError, RecursionError):
            return {}
