"""Expresses what a JSON schema excludes by what remains: `not`, `if`, and dependent properties."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine.structured.json_parts import (
    CONSTRAINING,
    NOT_PATTERN,
    NOT_VALUES,
    TYPES,
    are_equal,
    is_number,
    mapping,
    sequence,
)

_MAX_ALTERNATIVES = 32


class CannotNegate(ValueError):
    """The message names the word that can't be negated."""


def negation(schema: Any) -> list[Any]:
    """Schemas of which one holds if and only if this one doesn't. Raises CannotNegate."""
    if isinstance(schema, bool):
        return [] if schema else [True]
    if not isinstance(schema, dict):
        raise CannotNegate("an invalid schema")
    found: list[Any] = []
    for word in sorted(schema.keys() & CONSTRAINING):
        if word not in _NEGATIONS:
            raise CannotNegate(word)
        found += _NEGATIONS[word](schema)
    if len(found) > _MAX_ALTERNATIVES:
        raise CannotNegate(f"more than {_MAX_ALTERNATIVES} conditions")
    return found


def alternatives(schema: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Each word that sets a condition, and schemas of which one must hold. Raises CannotNegate."""
    if "not" in schema:
        yield "not", negation(schema["not"])
    if "if" in schema and ("then" in schema or "else" in schema):
        holds = [{"allOf": [schema["if"], schema.get("then", True)]}]
        fails = [{"allOf": [negated, schema.get("else", True)]} for negated in negation(schema["if"])]
        yield "if", [*holds, *fails]
    for word in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, wanted in mapping(schema, word).items():
            then = {"required": wanted} if isinstance(wanted, list) else wanted
            absent = {"properties": {name: False}}
            yield word, [absent, {"allOf": [{"required": [name]}, then]}]


def _not_type(schema: Mapping[str, Any]) -> list[Any]:
    named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    # Numbers other than integers can't be expressed: they are excluded too.
    gone = {*named, "integer", "number"} if {"integer", "number"} & set(named) else set(named)
    return [{"type": [name for name in TYPES if name not in gone]}]


def _not_values(schema: Mapping[str, Any]) -> list[Any]:
    listed = list(sequence(schema, "enum"))
    if "const" in schema:
        is_listed = "enum" not in schema or any(are_equal(schema["const"], value) for value in listed)
        listed = [schema["const"]] if is_listed else []
    return [{NOT_VALUES: listed}]


def _not_required(schema: Mapping[str, Any]) -> list[Any]:
    return [{"type": "object", "properties": {name: False}} for name in sequence(schema, "required")]


def _not_properties(schema: Mapping[str, Any]) -> list[Any]:
    return [
        {"type": "object", "required": [name], "properties": {name: {"not": inner}}}
        for name, inner in mapping(schema, "properties").items()
    ]


def _not_bound(
    word: str, opposite: str, kind: str, step: int = 0
) -> Callable[[Mapping[str, Any]], list[Any]]:
    def negate(schema: Mapping[str, Any]) -> list[Any]:
        bound = schema[word]
        if not is_number(bound):
            raise CannotNegate(word)
        return [{"type": kind, opposite: bound + step}] if bound + step >= 0 or kind == "number" else []

    return negate


def _not_any(schema: Mapping[str, Any]) -> list[Any]:
    return [{"allOf": [{"not": branch} for branch in sequence(schema, "anyOf")]}]


_NEGATIONS: Mapping[str, Callable[[Mapping[str, Any]], list[Any]]] = {
    "type": _not_type,
    "enum": _not_values,
    "const": lambda schema: [] if "enum" in schema else _not_values(schema),
    "required": _not_required,
    "properties": _not_properties,
    "pattern": lambda schema: [{"type": "string", NOT_PATTERN: schema["pattern"]}],
    "minLength": _not_bound("minLength", "maxLength", "string", -1),
    "maxLength": _not_bound("maxLength", "minLength", "string", 1),
    "minItems": _not_bound("minItems", "maxItems", "array", -1),
    "maxItems": _not_bound("maxItems", "minItems", "array", 1),
    "minimum": _not_bound("minimum", "exclusiveMaximum", "number"),
    "maximum": _not_bound("maximum", "exclusiveMinimum", "number"),
    "exclusiveMinimum": _not_bound("exclusiveMinimum", "maximum", "number"),
    "exclusiveMaximum": _not_bound("exclusiveMaximum", "minimum", "number"),
    "not": lambda schema: [schema["not"]],
    "anyOf": _not_any,
    "allOf": lambda schema: [{"not": branch} for branch in sequence(schema, "allOf")],
}
