"""Writes a required form of output as a grammar of the compiler (llguidance)."""

from __future__ import annotations

import json
from typing import Any

from engine.errors import InvalidRequest
from engine.structured.json_schema import normalise_json_schema
from engine.structured.json_strings import plain_pattern
from engine.structured.regex import UnsupportedPattern
from engine.structured.spec import StructuredKind, StructuredOutput

_MAX_WHITESPACE = 16  # characters between two JSON tokens: enough to indent, but not endless blanks
_JSON_OPTIONS = {"whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{_MAX_WHITESPACE}}}"}


def write_grammar(wanted: StructuredOutput) -> str:
    """Raises InvalidRequest for a form that can't be enforced."""
    match wanted.kind:
        case StructuredKind.JSON_SCHEMA:
            schema = normalise_json_schema(
                _parse(wanted), wanted.param, is_strict=wanted.is_strict, advice=wanted.advice
            )
            return json_grammar(schema)
        case StructuredKind.JSON_OBJECT:
            return json_grammar({"type": "object"})
        case StructuredKind.REGEX:
            try:
                return lark_grammar(f"start: {regex(plain_pattern(wanted.source))}")
            except UnsupportedPattern as error:
                raise InvalidRequest(
                    f"{wanted.param} can't be enforced: {error}.", param=wanted.param
                ) from error
        case StructuredKind.CHOICE:
            choices = " | ".join(map(literal, _parse(wanted)))
            return lark_grammar(f"start: CHOICE\nCHOICE: {choices}")
        case StructuredKind.GRAMMAR:
            if "::=" in wanted.source:
                from engine.structured.ebnf import to_lark

                return lark_grammar(to_lark(wanted.source, wanted.param))
            return lark_grammar(wanted.source)
        case StructuredKind.STRUCTURAL_TAG | StructuredKind.TOOL_CALLS:
            from engine.structured.structural_tag import write_structural_tag

            is_ours = wanted.kind is StructuredKind.TOOL_CALLS
            return lark_grammar(write_structural_tag(_parse(wanted), wanted.param, is_ours=is_ours))


def json_grammar(schema: Any) -> str:
    return json.dumps({"grammars": [{"json_schema": with_options(schema)}]})


def with_options(schema: Any) -> dict[str, Any]:
    return {**(schema if isinstance(schema, dict) else {}), "x-guidance": _JSON_OPTIONS}


def lark_grammar(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def regex(pattern: str) -> str:
    return f"/{pattern}/" if pattern else '""'


def _parse(wanted: StructuredOutput) -> Any:
    """Raises InvalidRequest for invalid JSON or invalid Unicode."""
    try:
        value = json.loads(wanted.source)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{wanted.param} is not valid Unicode: it contains a lone surrogate.", param=wanted.param
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{wanted.param} is not valid JSON: {error}", param=wanted.param) from error
    return value
