"""The keywords of one schema, not of those in it: each is followed as it stands there, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.structured.json_branches import are_disjoint, types_of
from engine.structured.json_strings import FORMATS

_MAX_COUNTED_PROPERTIES = 64  # beside minProperties or maxProperties, which take a state per pair of numbers
_MAX_COUNT = 100_000
_MAX_MULTIPLE = 1024  # the compiler passes over greater ones
_MAX_INTEGER = 2**63 - 1
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
_BOUNDS = ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum")
_COUNTS = (("minItems", "maxItems"), ("minLength", "maxLength"), ("minProperties", "maxProperties"))
_ASSERTIONS = {
    "string": frozenset(["format", "maxLength", "minLength", "pattern"]),
    "number": frozenset([*_BOUNDS, "multipleOf"]),
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
_ALL_ASSERTIONS = frozenset().union(*_ASSERTIONS.values())
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def schema_error(path: str, word: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{path}: {word} {what}.", param=f"{path}.{word}")


def check_keywords(schema: Any, path: str) -> None:
    """Raises InvalidRequest."""
    if schema is True:
        return
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{path}: a schema is an object or true, not {schema!r:.40}.", param=path)
    for word in sorted(_IGNORED & schema.keys()):
        raise schema_error(path, word, "is not supported")
    if schema.get("uniqueItems"):
        raise schema_error(path, "uniqueItems", "is not supported")
    _check_combination(schema, path)
    _check_types(schema, path)
    _check_values(schema, path)
    _check_counts(schema, path)
    _check_numbers(schema, path)
    _check_strings(schema, path)
    _check_required(schema, path)
    _check_names(schema, path)
    if "oneOf" in schema and not are_disjoint(schema["oneOf"]):
        raise schema_error(
            path,
            "oneOf",
            "has branches that an instance could satisfy together; use anyOf, or give each branch "
            "a type of its own or a required property with its own const",
        )


def _check_combination(schema: Mapping[str, Any], path: str) -> None:
    combiners = sorted(_COMBINERS & schema.keys())
    if len(combiners) > 1:
        raise schema_error(path, combiners[1], f"beside {combiners[0]} is not supported")
    if combiners:
        for word in sorted((_ALL_ASSERTIONS | {"const", "enum", "type"}) & schema.keys()):
            raise schema_error(path, word, f"beside {combiners[0]} is not supported: put it inside")
    if len(schema.get("allOf", [])) > 1:
        raise schema_error(path, "allOf", "of more than one schema is not supported: merge them")
    reference = schema.get("$ref")
    if "$ref" in schema and not (isinstance(reference, str) and (reference == "#" or reference[:2] == "#/")):
        raise schema_error(path, "$ref", f"must point into the schema itself (#/…), not to {reference!r:.80}")


def _check_types(schema: Mapping[str, Any], path: str) -> None:
    types = types_of(schema)
    for name in types or ():
        if not isinstance(name, str) or name not in _JSON_TYPES:
            raise schema_error(path, "type", f"{name!r:.40} is no JSON type")
    if types == []:
        raise schema_error(path, "type", "must name a type")
    for name, words in _ASSERTIONS.items():
        fitting = {"number", "integer"} if name == "number" else {name}
        # Without a type, xgrammar takes an object or an array by its words, but no number or string.
        implied = types is None and name in ("array", "object")
        for word in sorted(words & schema.keys()):
            if not implied and not fitting & set(types or ()):
                raise schema_error(path, word, f"needs type {name!r} beside it")


def _check_values(schema: Mapping[str, Any], path: str) -> None:
    listed = [word for word in ("enum", "const") if word in schema]
    if not listed:
        return
    beside = [*listed[1:], *sorted(_ALL_ASSERTIONS & schema.keys())]
    if beside:
        raise schema_error(path, beside[0], f"beside {listed[0]} is not supported: leave out what it forbids")
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    if not isinstance(values, list) or not values:
        raise schema_error(path, "enum", "must be a list with something in it")
    types = types_of(schema)
    allowed = tuple(kind for name in types or () for kind in _JSON_TYPES[name])
    for value in values:
        if types is not None and not _is_of(value, types, allowed):
            raise schema_error(path, "type", f"does not fit the value {value!r:.40} listed beside it")
        if not _is_writable(value):
            raise schema_error(path, listed[0], "has an integer beyond 64 bits, or is nested too deep")


def _is_of(value: Any, types: Sequence[str], allowed: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    return isinstance(value, allowed)


def _is_writable(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return depth < 20 and all(_is_writable(part, depth + 1) for part in inner)
    return not isinstance(value, int) or abs(value) <= _MAX_INTEGER


def _check_counts(schema: Mapping[str, Any], path: str) -> None:
    for least, most in _COUNTS:
        for word in (least, most):
            value = schema.get(word, 0)
            if not _is_number(value) or value != int(value) or not 0 <= value <= _MAX_COUNT:
                raise schema_error(path, word, f"must be a whole number, 0 to {_MAX_COUNT}")
        if schema.get(least, 0) > schema.get(most, _MAX_COUNT):
            raise schema_error(path, least, f"is greater than {most}")


def _check_numbers(schema: Mapping[str, Any], path: str) -> None:
    types = types_of(schema) or ()
    for word in _BOUNDS:
        value = schema.get(word, 0)
        if not _is_number(value) or abs(value) > _MAX_INTEGER:
            raise schema_error(path, word, "must be a number within 64 bits")
        if "integer" in types and value != int(value):
            raise schema_error(path, word, "must be a whole number for integers")
    if "multipleOf" not in schema:
        return
    factor = schema["multipleOf"]
    if "number" in types:
        raise schema_error(path, "multipleOf", "is supported for type 'integer' only")
    if not _is_number(factor) or factor != int(factor) or not 1 <= factor <= _MAX_MULTIPLE:
        raise schema_error(path, "multipleOf", f"must be a whole number, 1 to {_MAX_MULTIPLE}")
    for word in _BOUNDS:
        if word in schema:
            raise schema_error(path, "multipleOf", f"beside {word} is not supported")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_strings(schema: Mapping[str, Any], path: str) -> None:
    form = schema.get("format")
    if form is not None and (not isinstance(form, str) or form not in FORMATS):
        known = ", ".join(sorted(FORMATS))
        raise schema_error(path, "format", f"{form!r:.40} is not supported; known are {known}")
    if not isinstance(schema.get("pattern", ""), str):
        raise schema_error(path, "pattern", "must be a string")
    shaping = [word for word in ("format", "pattern") if word in schema]
    lengths = [word for word in ("minLength", "maxLength") if word in schema]
    if shaping and (lengths or len(shaping) > 1):
        raise schema_error(path, (lengths or shaping[1:])[0], f"beside {shaping[0]} is not supported")


def _check_required(schema: Mapping[str, Any], path: str) -> None:
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise schema_error(path, "required", "must be a list of names")
    missing = [name for name in required if name not in schema.get("properties", {})]
    if missing:
        raise schema_error(path, "required", f"names {missing[0]!r:.40}, which is not among the properties")


def _check_names(schema: Mapping[str, Any], path: str) -> None:
    """What the compiler follows of an object's names: one way to say them, and counts where none repeats."""
    named = [word for word in ("propertyNames", "patternProperties", "properties") if word in schema]
    if len(named) > 1:
        raise schema_error(path, named[0], f"beside {named[1]} is not supported")
    if "propertyNames" in schema and not isinstance(schema["propertyNames"], dict):
        raise schema_error(path, "propertyNames", "must be an object")
    if len(schema.get("patternProperties", {})) > 1:
        raise schema_error(path, "patternProperties", "with more than one pattern is not supported")
    others = [word for word in ("additionalProperties", "unevaluatedProperties") if schema.get(word)]
    if others and (named and named[0] != "properties") and schema[others[0]] is not True:
        raise schema_error(path, others[0], f"beside {named[0]} is not supported")
    if len(schema.get("properties", {})) > _MAX_COUNTED_PROPERTIES:
        for word in {"minProperties", "maxProperties"} & schema.keys():
            raise schema_error(path, word, f"beside more than {_MAX_COUNTED_PROPERTIES} is not supported")
    is_closed = named == ["properties"] and not others
    if not is_closed and schema.get("minProperties", 0) > 1:
        raise schema_error(path, "minProperties", "is supported beside properties alone: others may repeat")
