"""Writes a required form of output as a grammar of the compiler (llguidance)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.structured.ebnf import to_lark
from engine.structured.json_schema import normalise_json_schema
from engine.structured.json_strings import plain_pattern
from engine.structured.lark import literal, regex, with_options
from engine.structured.regex import UnsupportedPattern
from engine.structured.spec import StructuredKind, StructuredOutput
from engine.structured.structural_tag import write_structural_tag


def write_grammar(wanted: StructuredOutput) -> str:
    """Raises InvalidRequest for a form that can't be enforced."""
    match wanted.kind:
        case StructuredKind.JSON_SCHEMA:
            schema = normalise_json_schema(
                _parse(wanted), wanted.param, is_strict=wanted.is_strict, advice=wanted.advice
            )
            return _json(schema)
        case StructuredKind.JSON_OBJECT:
            return _json({"type": "object"})
        case StructuredKind.REGEX:
            try:
                return _lark(f"start: {regex(plain_pattern(wanted.source))}")
            except UnsupportedPattern as error:
                raise InvalidRequest(
                    f"{wanted.param} can't be enforced: {error}.", param=wanted.param
                ) from error
        case StructuredKind.CHOICE:
            choices = " | ".join(str(literal(choice)) for choice in _parse(wanted))
            return _lark(f"start: CHOICE\nCHOICE: {choices}")
        case StructuredKind.GRAMMAR:
            if "::=" in wanted.source:
                return _lark(to_lark(wanted.source, wanted.param))
            return _lark(wanted.source)
        case StructuredKind.STRUCTURAL_TAG | StructuredKind.TOOL_CALLS:
            is_ours = wanted.kind is StructuredKind.TOOL_CALLS
            return _lark(*write_structural_tag(_parse(wanted), wanted.param, is_ours=is_ours))


def _json(schema: Any) -> str:
    return json.dumps({"grammars": [{"json_schema": with_options(schema)}]})


def _lark(text: str, apart: Sequence[str] = ()) -> str:
    """`apart`: grammars that it names as @g1, @g2 …"""
    others = [{"name": f"g{number}", "lark_grammar": source} for number, source in enumerate(apart, 1)]
    return json.dumps({"grammars": [{"lark_grammar": text}, *others]})


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
