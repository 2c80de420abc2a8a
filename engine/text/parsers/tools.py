"""The tool parsers by vLLM's names, the detection from chat templates, and constraints for their formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.text.parsers.events import (
    CallArguments,
    CallBegun,
    CallEnded,
    TextPiece,
    Tool,
    ToolEvent,
    ToolParser,
)
from engine.text.parsers.hermes import HermesParser
from engine.text.parsers.llama_json import LlamaJsonParser
from engine.text.parsers.mistral import MistralParser
from engine.text.parsers.qwen_coder import QwenCoderParser
from engine.text.parsers.tool_constraints import AnswerSchema, answer_or_calls, call_constraint

__all__ = [
    "TOOL_PARSERS",
    "AnswerSchema",
    "CallArguments",
    "CallBegun",
    "CallEnded",
    "TextPiece",
    "Tool",
    "ToolEvent",
    "ToolParser",
    "answer_or_calls",
    "call_constraint",
    "detect_tool_parser",
    "make_tool_parser",
]

TOOL_PARSERS: Mapping[str, Callable[[Sequence[Tool]], ToolParser]] = {
    "hermes": lambda tools: HermesParser(),
    "qwen3_json": lambda tools: HermesParser(),
    "qwen3_coder": QwenCoderParser,
    "qwen3_xml": QwenCoderParser,
    "llama3_json": LlamaJsonParser,
    "llama4_json": LlamaJsonParser,
    "mistral": MistralParser,
}


def make_tool_parser(name: str, tools: Sequence[Tool]) -> ToolParser:
    """A parser for one output. `tools` are the request's: some formats need their schemas."""
    return TOOL_PARSERS[name](tools)


def detect_tool_parser(template: str) -> str | None:
    """The parser for the format that a template teaches the model; None if we have none."""
    text = template.replace('\\"', '"')
    if "<function=" in text and "<parameter=" in text:
        return "qwen3_coder"
    if "<tool_call>" in text and '"name"' in text and '"arguments"' in text:
        return "hermes"
    if "[TOOL_CALLS]" in text:
        return "mistral"
    if "<|start_header_id|>" in text and '"name"' in text and '"parameters"' in text:
        return "llama3_json"
    return None
