"""The required form of an output, and the delimiters of reasoning that may precede it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class StructuredKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"  # EBNF or Lark
    STRUCTURAL_TAG = "structural_tag"  # as xgrammar defines them: text with parts that follow grammars
    TOOL_CALLS = "tool_calls"  # a structural tag of ours: each schema has its source and whether it is strict


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """Equal specifications are compiled once."""

    kind: StructuredKind
    source: str  # JSON for schemas, choices (a list of strings) and tags
    param: str  # the request's field it comes from, for errors
    is_strict: bool = True  # of a schema: what can't be enforced is an error, not left to the model
    advice: str = ""  # added to such an error


@dataclass(frozen=True, slots=True)
class ReasoningDelimiters:
    """The tokens that begin and end reasoning."""

    start: tuple[int, ...]
    end: tuple[int, ...]
    is_open: bool  # whether the prompt ends inside reasoning; else the output's first token may begin it
