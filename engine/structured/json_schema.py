"""Which JSON schemas are really followed: what the compiler would pass over is refused by name.

Found out by experiment with xgrammar 0.2.8: for each keyword, whether an instance that breaks it is kept from
coming to be. Annotations (`title`, `default`, `contentEncoding` …) and unknown words assert nothing and pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.structured.json_keywords import check_keywords, schema_error
from engine.structured.json_strings import rewrite_strings
from engine.structured.regex import UnsupportedPattern
from engine.structured.string_rules import StringRules

MAX_DEPTH = 64
_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLES = ("items", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties")
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")


def follow_json_schema(schema: Any, param: str, rules: StringRules, *, is_json: bool = True) -> Any:
    """The schema, changed in place, as the compiler follows it to the letter.

    Its strings may become stand-ins, whose `rules` are to be inserted in the grammar that the schema becomes.
    `is_json`: whether its strings are written as JSON has them, in quotes and with escapes.
    Raises InvalidRequest for one that can't be followed, and says where and by which keyword.
    """
    parts = list(_walk(schema, param, 0))
    seen = {id(part) for _, part in parts}
    for path, part in parts:  # grows: a reference may point to where no schema is looked for
        if isinstance(part, dict):
            _hand_down_types(part, path)
        check_keywords(part, path)
        if isinstance(part, dict) and "$ref" in part:
            target = _resolve(schema, part["$ref"], path)
            if id(target) not in seen:
                found = list(_walk(target, param + part["$ref"][1:].replace("/", "."), 0))
                parts += [(at, one) for at, one in found if id(one) not in seen]
                seen |= {id(one) for _, one in found}
    has_shared_names = any(
        isinstance(part, dict) and "$ref" in part and ".propertyNames" in path for path, part in parts
    )
    for path, part in parts if is_json else ():
        if isinstance(part, dict):
            is_name = has_shared_names or ".propertyNames" in path
            _rewrite(part, path, None if is_name else rules)
    return schema


def _rewrite(schema: dict[str, Any], path: str, rules: StringRules | None) -> None:
    try:
        rewrite_strings(schema, rules)
    except UnsupportedPattern as error:
        word = "patternProperties" if "patternProperties" in schema else "pattern"
        raise schema_error(path, word, f"can't be followed: {error}") from error


def _hand_down_types(schema: dict[str, Any], path: str) -> None:
    """The compiler passes over a type beside a combination, so each branch gets it; and names are strings."""
    names = schema.get("propertyNames")
    if isinstance(names, dict):
        names.setdefault("type", "string")
    combined = [(word, schema[word]) for word in ("anyOf", "oneOf", "allOf") if word in schema]
    if "type" not in schema or not combined:
        return
    word, branches = combined[0]
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    for branch in branches:
        own = branch.get("type", schema["type"]) if isinstance(branch, dict) else None
        if own is None or "$ref" in branch or any(one not in wanted for one in _listed(own)):
            raise schema_error(path, "type", f"beside {word} is supported only if each branch has that type")
        branch["type"] = own
    del schema["type"]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _resolve(root: Any, reference: str, path: str) -> Any:
    target = root
    for name in reference.split("/")[1:]:
        if not isinstance(target, dict) or name not in target:
            raise schema_error(path, "$ref", f"{reference!r:.80} points to nothing (a path of plain names)")
        target = target[name]
    return target


def _walk(schema: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The schema and those in it, each with its place."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{path:.200}: the schema is nested more than {MAX_DEPTH} deep.", param=path)
    yield path, schema
    if not isinstance(schema, dict):
        return
    for word in _MAPPINGS:
        for name, part in _mapping(schema, word, path).items():
            yield from _walk(part, f"{path}.{word}.{name}", depth + 1)
    for word in _SINGLES:
        if isinstance(schema.get(word), dict):
            yield from _walk(schema[word], f"{path}.{word}", depth + 1)
    for word in _LISTS:
        for index, part in enumerate(_sequence(schema, word, path)):
            yield from _walk(part, f"{path}.{word}[{index}]", depth + 1)


def _mapping(schema: Mapping[str, Any], word: str, path: str) -> Mapping[str, Any]:
    value = schema.get(word, {})
    if not isinstance(value, dict):
        raise schema_error(path, word, "must be an object")
    return value


def _sequence(schema: Mapping[str, Any], word: str, path: str) -> Sequence[Any]:
    value = schema.get(word, [])
    if not isinstance(value, list) or (word in schema and not value):
        raise schema_error(path, word, "must be a list with something in it")
    return value
