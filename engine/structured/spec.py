"""What an output must be, and the marks of a thought that may come before it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class StructuredKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"  # EBNF as xgrammar reads it
    STRUCTURAL_TAG = "structural_tag"  # xgrammar's: text with parts that follow grammars
    TOOL_CALLS = (
        "tool_calls"  # one of those, of ours: each schema says where it is from, and if it is demanded
    )


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """Equal ones are compiled once."""

    kind: StructuredKind
    source: str  # JSON for schemas, choices (a list of strings) and tags
    param: str  # the request's field that it comes from, for errors
    is_strict: bool = True  # of a schema: what can't be enforced is an error, and not left to the model
    advice: str = ""  # beside such an error


@dataclass(frozen=True, slots=True)
class ReasoningDelimiters:
    """Tokens that begin and end a thought."""

    start: tuple[int, ...]
    end: tuple[int, ...]
    is_open: bool  # whether the prompt has begun one; else the output may, with its first token
