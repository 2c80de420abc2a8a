"""A call that the model makes, written down as its tool's kind wants it: the fields of its item. Pure."""

from __future__ import annotations

import json
from typing import Any, Protocol

from engine.server.openai.responses.custom_input import CustomInput
from engine.server.openai.responses.toolbox import Offered


class Call(Protocol):
    """One call while it is written."""

    @property
    def type(self) -> str:
        """Of its item."""

    @property
    def event(self) -> str | None:
        """What its events' names begin with; None where the item alone tells of it."""

    @property
    def fields(self) -> dict[str, Any]:
        """Its item's, so far."""

    @property
    def done(self) -> dict[str, Any]:
        """The fields of the event that ends it."""

    def feed(self, arguments: str) -> str:
        """Take a piece of the JSON that the model writes; what is told of it."""

    def finish(self) -> str:
        """What is left to be told."""


def begin_call(offered: Offered | None, name: str) -> Call:
    """`offered`: None where the model calls what it wasn't offered, which is the client's to judge."""
    if offered is None:
        return _FunctionCall({"name": name})
    named = {"name": offered.name, **({"namespace": offered.namespace} if offered.namespace else {})}
    match offered.type:
        case "custom":
            return _CustomCall(named)
        case "tool_search":
            return _ToolSearchCall()
    return _FunctionCall(named)


class _FunctionCall:
    type = "function_call"
    event: str | None = "response.function_call_arguments"

    def __init__(self, named: dict[str, Any]) -> None:
        self._named = named
        self._arguments = ""

    @property
    def fields(self) -> dict[str, Any]:
        return {**self._named, "arguments": self._arguments}

    @property
    def done(self) -> dict[str, Any]:
        return {"arguments": self._arguments, "name": self._named["name"]}

    def feed(self, arguments: str) -> str:
        self._arguments += arguments
        return arguments

    def finish(self) -> str:
        return ""


class _CustomCall:
    type = "custom_tool_call"
    event: str | None = "response.custom_tool_call_input"

    def __init__(self, named: dict[str, Any]) -> None:
        self._named = named
        self._input = CustomInput()

    @property
    def fields(self) -> dict[str, Any]:
        return {**self._named, "input": self._input.text}

    @property
    def done(self) -> dict[str, Any]:
        return {"input": self._input.text}

    def feed(self, arguments: str) -> str:
        return self._input.feed(arguments)

    def finish(self) -> str:
        return self._input.finish()


class _ToolSearchCall:
    """The client runs the search; its arguments are an object, told once it is complete."""

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
