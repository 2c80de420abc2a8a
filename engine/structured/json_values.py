"""Whether the rest of a schema allows a value that the schema lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from engine.structured.json_numbers import is_valid_number
from engine.structured.json_parts import (
    NOT_VALUES,
    SchemaPart,
    are_equal,
    is_number,
    mapping,
    sequence,
    type_of,
)
from engine.structured.json_texts import is_valid_string, name_matches
from engine.structured.regex import UnsupportedPattern

_MAX_INTEGER = 2**63 - 1
_MAX_DEPTH = 20

Expand = Callable[[SchemaPart], Sequence[SchemaPart]]
"""Splits a part into parts without references and `allOf`s."""


def is_writable(value: Any, depth: int = 0) -> bool:
    """Whether the compiler can write the value: it has integers of 64 bits."""
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return depth < _MAX_DEPTH and all(is_writable(part, depth + 1) for part in inner)
    return not isinstance(value, int) or abs(value) <= _MAX_INTEGER


def is_valid(value: Any, part: SchemaPart, expand: Expand, depth: int = 0) -> bool:
    """Whether the value is allowed; True if that can't be decided."""
    if depth > _MAX_DEPTH:
        return True
    try:
        return all(_is_valid_against(value, single, expand, depth) for single in expand(part))
    except TypeError:  # the schema is invalid, which is reported elsewhere
        return True


def _is_valid_against(value: Any, part: SchemaPart, expand: Expand, depth: int) -> bool:
    schema = part.schema
    if isinstance(schema, bool):
        return schema
    if not _values_valid(value, schema):
        return False

    def holds(inner: SchemaPart, of: Any = value) -> bool:
        return is_valid(of, inner, expand, depth + 1)

    for word, number in (("anyOf", any), ("oneOf", _exactly_one)):
        branches = [part.child(word, index) for index in range(len(sequence(schema, word)))]
        if branches and not number(holds(branch) for branch in branches):
            return False
    if "not" in schema and holds(part.child("not")):
        return False
    if "if" in schema:
        then = "then" if holds(part.child("if")) else "else"
        if then in schema and not holds(part.child(then)):
            return False
    if isinstance(value, str):
        return is_valid_string(value, schema)
    if is_number(value):
        return is_valid_number(value, schema)
    if isinstance(value, list):
        return _items_valid(value, part, holds)
    return not isinstance(value, dict) or _properties_valid(value, part, holds)


def _exactly_one(found: Iterable[bool]) -> bool:
    return sum(found) == 1


def _values_valid(value: Any, schema: dict[str, Any]) -> bool:
    named = schema.get("type")
    if named is not None:
        types = {str(name).lower() for name in (named if isinstance(named, list) else [named])}
        types |= {"null"} if schema.get("nullable") is True else set()
        kind = type_of(value)
        if kind not in types and not (kind == "integer" and "number" in types):
            return False
    listed = sequence(schema, "enum")
    if listed and not any(are_equal(value, option) for option in listed):
        return value is None and schema.get("nullable") is True
    if "const" in schema and not are_equal(value, schema["const"]):
        return False
    return not any(are_equal(value, excluded) for excluded in schema.get(NOT_VALUES, ()))


def _items_valid(value: list[Any], part: SchemaPart, holds: Callable[..., bool]) -> bool:
    schema = part.schema
    word = "items" if isinstance(schema.get("items"), list) else "prefixItems"
    first = sequence(schema, word)
    after = "additionalItems" if word == "items" else "items"
    if schema.get("uniqueItems") and any(
        are_equal(a, b) for i, a in enumerate(value) for b in value[i + 1 :]
    ):
        return False
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    for index, item in enumerate(value):
        if index < len(first):
            if not holds(part.child(word, index), item):
                return False
        elif after in schema and not holds(part.child(after), item):
            return False
    return "contains" not in schema or any(holds(part.child("contains"), item) for item in value)


def _properties_valid(value: dict[str, Any], part: SchemaPart, holds: Callable[..., bool]) -> bool:
    schema = part.schema
    if any(name not in value for name in sequence(schema, "required")):
        return False
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
        return False
    for name, inner in value.items():
        if "propertyNames" in schema and not holds(part.child("propertyNames"), name):
            return False
        if not all(holds(child, inner) for child in children_of(part, name)):
            return False
    return all(
        name not in value or all(other in value for other in wanted)
        for name, wanted in mapping(schema, "dependentRequired").items()
    )


def children_of(part: SchemaPart, name: str) -> list[SchemaPart]:
    """The schemas in one schema for a property of this name."""
    schema = part.schema
    found = [part.child("properties", name)] if name in mapping(schema, "properties") else []
    for pattern in mapping(schema, "patternProperties"):
        try:
            is_one = name_matches(pattern, name)
        except UnsupportedPattern:
            is_one = False
        found += [part.child("patternProperties", pattern)] if is_one else []
    for word in ("additionalProperties", "unevaluatedProperties"):
        if not found and word in schema:
            found.append(part.child(word))
    return found
