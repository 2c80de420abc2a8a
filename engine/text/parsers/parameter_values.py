"""Converts values that a model wrote as bare text to the JSON that a tool's schema asks for.

A client's regular expressions are not run here: this is the event loop, and `^(a+)+$` could block it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from engine.text.parsers.json_call import read_json

_LIMITS = ("enum", "const", "pattern", "minLength", "maxLength", "format")


class ParameterSchemas:
    """What one tool's schema says about each parameter's value."""

    def __init__(self, parameters: Any) -> None:
        """`parameters`: the tool's JSON schema; anything else is ignored."""
        self._root: Mapping[str, Any] = parameters if isinstance(parameters, dict) else {}
        self.names = tuple(
            {name: None for part in self._parts(self._root) for name in _mapping(part, "properties")}
        )

    def find(self, name: str) -> list[Mapping[str, Any]]:
        """The schemas that a parameter's value may follow, split into parts; empty = unknown."""
        parts = self._parts(self._root)
        found = [schemas[name] for part in parts if name in (schemas := _mapping(part, "properties"))]
        found = found or [schema for part in parts for schema in _mapping(part, "patternProperties").values()]
        found = found or [part["additionalProperties"] for part in parts if "additionalProperties" in part]
        return [part for schema in found for part in self._parts(schema)]

    def _parts(self, schema: Any) -> list[Mapping[str, Any]]:
        """A schema and the schemas it combines, each once."""
        parts: dict[int, Mapping[str, Any]] = {}
        waiting = [schema]
        while waiting:
            part = waiting.pop()
            if not isinstance(part, dict) or id(part) in parts:
                continue
            parts[id(part)] = part
            for word in ("anyOf", "oneOf", "allOf"):
                waiting += _listed(part.get(word))
            if isinstance(part.get("$ref"), str):
                waiting.append(self._resolve(part["$ref"]))
        return list(parts.values())

    def _resolve(self, reference: str) -> Any:
        target: Any = self._root
        for word in unquote(reference.removeprefix("#")).split("/")[1:]:
            name = word.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        return target if reference.startswith("#") else None


def is_plain_string(schemas: list[Mapping[str, Any]]) -> bool:
    """Whether a value is text whatever it contains, so that it can be reported before it is complete."""
    return types_of(schemas) <= {"string"} and not any(word in part for part in schemas for word in _LIMITS)


def types_of(schemas: list[Mapping[str, Any]]) -> frozenset[str]:
    """The possible JSON types; empty if unknown."""
    types: set[str] = set()
    for part in schemas:
        named = part.get("type")
        types |= {
            word for word in ([named] if isinstance(named, str) else _listed(named)) if isinstance(word, str)
        }
        types |= {"null"} if part.get("nullable") is True else set()
        types |= {_type_of(value) for value in _listed(part.get("enum"))}
        if "const" in part:
            types.add(_type_of(part["const"]))
    return frozenset(types)


def to_json(written: str, schemas: list[Mapping[str, Any]]) -> str:
    """The value as JSON: of the first type that fits, else as text.

    `written` is everything between the delimiters; one line break at each end belongs to them.
    """
    types = types_of(schemas)
    bare = written.strip()
    if "null" in types and bare.lower() in ("null", "none"):
        return "null"
    value = read_json(bare)
    if value is None:  # not JSON, or a null that the schema doesn't allow
        pass
    elif _type_of(value) in types or (_type_of(value) == "integer" and "number" in types):
        if not isinstance(value, str):
            return bare
    elif isinstance(value, float) and value.is_integer() and "integer" in types:
        return bare
    if "boolean" in types and bare.lower() in ("true", "false"):
        return bare.lower()
    if "string" in types or not types or value is None:
        return json.dumps(_choose(written, schemas), ensure_ascii=False)
    return bare


def _choose(written: str, schemas: list[Mapping[str, Any]]) -> str:
    """The text without its line breaks, or another version of it that fits the schema."""
    trimmed = written.removeprefix("\n").removesuffix("\n")
    versions = (trimmed, written.strip(), written)
    for text in versions:
        if all(_fits(text, part) for part in schemas):
            return text
    for text in versions:  # one of several schemas, perhaps
        if any(text in _listed(part.get("enum")) or text == part.get("const") for part in schemas):
            return text
    return trimmed


def _fits(text: str, schema: Mapping[str, Any]) -> bool:
    return (
        ("enum" not in schema or text in _listed(schema["enum"]))
        and text == schema.get("const", text)
        and _limit(schema, "minLength", 0) <= len(text) <= _limit(schema, "maxLength", len(text))
        and ("format" not in schema or text == text.strip())
    )


def _limit(schema: Mapping[str, Any], word: str, default: int) -> float:
    limit = schema.get(word)
    return limit if isinstance(limit, int | float) else default


def _mapping(schema: Mapping[str, Any], word: str) -> Mapping[str, Any]:
    """Empty for an invalid value: a tool's schema is as the client wrote it."""
    value = schema.get(word)
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
