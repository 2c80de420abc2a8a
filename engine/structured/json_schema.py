"""Which JSON schemas are really followed: what the compiler would pass over is refused by name.

Found out by experiment with xgrammar 0.2.8: for each keyword, whether an instance that breaks it is kept from
coming to be. Annotations (`title`, `default`, `contentEncoding` …) and unknown words assert nothing and pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import InvalidRequest

MAX_DEPTH = 64

FORMATS = frozenset(
    (
        "date",
        "time",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "uri-template",
        "uuid",
        "json-pointer",
        "relative-json-pointer",
    )
)
_IGNORED = frozenset(
    (
        "additionalItems",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "then",
        "$anchor",
        "$dynamicAnchor",
        "$dynamicRef",
        "$recursiveRef",
    )
)
_ASSERTIONS = {
    "string": frozenset(["format", "maxLength", "minLength", "pattern"]),
    "number": frozenset(["exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"]),
    "array": frozenset(["items", "maxItems", "minItems", "prefixItems", "unevaluatedItems"]),
    "object": frozenset(
        (
            "additionalProperties",
            "maxProperties",
            "minProperties",
            "patternProperties",
            "properties",
            "propertyNames",
            "required",
            "unevaluatedProperties",
        )
    ),
}
_COMBINERS = frozenset(("$ref", "allOf", "anyOf", "oneOf"))
_ALL_ASSERTIONS = frozenset().union(*_ASSERTIONS.values()) | {"const", "enum"}
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def check_json_schema(schema: Any, param: str) -> None:
    """Raise InvalidRequest for a schema that wouldn't be followed to the letter; says where it isn't."""
    for path, part in _walk(schema, param, 0):
        _check(part, path)


def _walk(schema: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{path}: the schema is nested more than {MAX_DEPTH} deep.", param=path)
    yield path, schema
    if not isinstance(schema, dict):
        return
    for word in ("properties", "patternProperties", "$defs", "definitions"):
        for name, part in _mapping(schema, word, path).items():
            yield from _walk(part, f"{path}.{word}.{name}", depth + 1)
    for word in (
        "items",
        "additionalProperties",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    ):
        if isinstance(schema.get(word), dict):
            yield from _walk(schema[word], f"{path}.{word}", depth + 1)
    for word in ("prefixItems", "anyOf", "oneOf", "allOf"):
        for index, part in enumerate(_sequence(schema, word, path)):
            yield from _walk(part, f"{path}.{word}[{index}]", depth + 1)


def _mapping(schema: Mapping[str, Any], word: str, path: str) -> Mapping[str, Any]:
    value = schema.get(word, {})
    if not isinstance(value, dict):
        raise _error(path, word, "must be an object")
    return value


def _sequence(schema: Mapping[str, Any], word: str, path: str) -> Sequence[Any]:
    value = schema.get(word, [])
    if not isinstance(value, list) or (word in schema and not value):
        raise _error(path, word, "must be a list with something in it")
    return value


def _check(schema: Any, path: str) -> None:
    if schema is True:
        return
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{path}: a schema is an object or true, not {schema!r:.40}.", param=path)
    for word in sorted(_IGNORED & schema.keys()):
        raise _error(path, word, "is not supported")
    if schema.get("uniqueItems"):
        raise _error(path, "uniqueItems", "is not supported")
    _check_combination(schema, path)
    _check_types(schema, path)
    _check_strings(schema, path)
    _check_required(schema, path)
    if "oneOf" in schema and not _are_disjoint(schema["oneOf"]):
        raise _error(
            path,
            "oneOf",
            "has branches that an instance could satisfy together; use anyOf, or give each branch "
            "a type of its own or a required property with its own const",
        )


def _check_combination(schema: Mapping[str, Any], path: str) -> None:
    combiners = sorted(_COMBINERS & schema.keys())
    if len(combiners) > 1:
        raise _error(path, combiners[1], f"beside {combiners[0]} is not supported")
    if combiners:
        for word in sorted(_ALL_ASSERTIONS & schema.keys()):
            raise _error(path, word, f"beside {combiners[0]} is not supported: put it inside")
    if len(schema.get("allOf", [])) > 1:
        raise _error(path, "allOf", "of more than one schema is not supported: merge them")
    reference = schema.get("$ref")
    if reference is not None and not (isinstance(reference, str) and reference.startswith("#")):
        raise _error(path, "$ref", f"must point into the schema itself (#/…), not to {reference!r:.80}")


def _check_types(schema: Mapping[str, Any], path: str) -> None:
    types = _types(schema)
    for name in types or ():
        if name not in _JSON_TYPES:
            raise _error(path, "type", f"{name!r:.40} is no JSON type")
    if _COMBINERS & schema.keys():
        return
    for name, words in _ASSERTIONS.items():
        fitting = {"number", "integer"} if name == "number" else {name}
        # Without a type, xgrammar takes an object or an array by its words, but no number or string.
        implied = types is None and name in ("array", "object")
        for word in sorted(words & schema.keys()):
            if not implied and not fitting & set(types or ()):
                raise _error(path, word, f"needs type {name!r} beside it")
    allowed = tuple(kind for name in types or () for kind in _JSON_TYPES[name])
    for value in [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]:
        if types is not None and not _is_of(value, types, allowed):
            raise _error(path, "type", f"does not fit the value {value!r:.40} listed beside it")


def _is_of(value: Any, types: Sequence[str], allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    return isinstance(value, allowed)


def _check_strings(schema: Mapping[str, Any], path: str) -> None:
    form = schema.get("format")
    if form is not None and form not in FORMATS:
        raise _error(path, "format", f"{form!r:.40} is not supported; known are {', '.join(sorted(FORMATS))}")
    shaping = [word for word in ("format", "pattern") if word in schema]
    lengths = [word for word in ("minLength", "maxLength") if word in schema]
    if shaping and (lengths or len(shaping) > 1):
        raise _error(path, (lengths or shaping[1:])[0], f"beside {shaping[0]} is not supported")


def _check_required(schema: Mapping[str, Any], path: str) -> None:
    required = schema.get("required", [])
    if not isinstance(required, list):
        raise _error(path, "required", "must be a list of names")
    missing = [name for name in required if name not in schema.get("properties", {})]
    if missing:
        raise _error(path, "required", f"names {missing[0]!r:.40}, which is not among the properties")


def _types(schema: Mapping[str, Any]) -> list[str] | None:
    value = schema.get("type")
    return None if value is None else value if isinstance(value, list) else [value]


def _are_disjoint(branches: Sequence[Any]) -> bool:
    """Whether no instance can satisfy two of them, as far as can be seen at once."""
    seen = [branch for branch in branches if isinstance(branch, dict)]
    if len(seen) < len(branches):
        return False
    pairs = [(a, b) for index, a in enumerate(seen) for b in seen[index + 1 :]]
    return all(_exclude_each_other(a, b) for a, b in pairs)


def _exclude_each_other(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    a_types, b_types = _types(a), _types(b)
    if a_types is not None and b_types is not None and not _widen(a_types) & _widen(b_types):
        return True
    a_values, b_values = _values(a), _values(b)
    if a_values is not None and b_values is not None:
        return not any(value in b_values for value in a_values)
    shared = set(a.get("required", [])) & set(b.get("required", []))
    return any(
        _exclude_each_other(a["properties"][name], b["properties"][name])
        for name in shared
        if isinstance(a.get("properties", {}).get(name), dict)
        and isinstance(b.get("properties", {}).get(name), dict)
    )


def _widen(types: Sequence[str]) -> set[str]:
    return {"number" if name == "integer" else name for name in types}


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _error(path: str, word: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{path}: {word} {what}.", param=f"{path}.{word}")
