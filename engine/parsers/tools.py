"""The tool parsers by vLLM's names, which of them a chat template calls for, and what forces their format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.parsers.events import (
    CallArguments,
    CallBegun,
    CallEnded,
    TextPiece,
    Tool,
    ToolEvent,
    ToolParser,
)
from engine.parsers.hermes import HermesParser
from engine.parsers.tool_constraints import call_constraint

__all__ = [
    "TOOL_PARSERS",
    "CallArguments",
    "CallBegun",
    "CallEnded",
    "TextPiece",
    "Tool",
    "ToolEvent",
    "ToolParser",
    "call_constraint",
    "detect_tool_parser",
    "make_tool_parser",
]

TOOL_PARSERS: Mapping[str, Callable[[Sequence[Tool]], ToolParser]] = {
    "hermes": lambda tools: HermesParser(),
}


def make_tool_parser(name: str, tools: Sequence[Tool]) -> ToolParser:
    """A parser for one output. `tools` are those of the request: some formats need their schemas."""
    return TOOL_PARSERS[name](tools)


def detect_tool_parser(template: str) -> str | None:
    """The parser for what a template teaches the model to write; None if it knows no tools."""
    if "<tool_call>" in template and '"name"' in template:
        return "hermes"
    return None
