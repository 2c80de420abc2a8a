"""JSON schemas as tools and libraries write them: what can be generated under each, and what can't."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from engine.structured.spec import StructuredKind, StructuredOutput
from tests.engine.structured.walking import Walker

S, I, N = {"type": "string"}, {"type": "integer"}, {"type": "null"}  # noqa: E741 - short names for short schemas


class Case(NamedTuple):
    schema: Any
    good: Sequence[Any] = ()
    bad: Sequence[Any] = ()


def obj(required: list[str] | None = None, /, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }


CAT = obj(["kind"], kind={"const": "cat"}, lives=I)
DOG = obj(["kind"], kind={"const": "dog"}, name=S)
UNTAGGED = obj(["lives"], kind={"const": "cat", "default": "cat"}, lives=I)
OTHER = obj(["name"], kind={"const": "dog", "default": "dog"}, name=S)
PETS = {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}
BY_KIND = {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}}

ANNOTATIONS = {
    f"{kind}-of-format-{form}": Case({"type": kind, "format": form}, good, [True])
    for kind, forms, good in (
        ("integer", ("int32", "int64", "uint8", "unix-time", "date"), [3]),
        ("number", ("float", "double", "decimal", "int64"), [3, 1.5]),
        ("array", ("checkbox",), [[1]]),
        (
            "string",
            (
                "password",
                "file-path",
                "binary",
                "byte",
                "color",
                "regex",
                "iri",
                "phone",
                "markdown",
                "idn-email",
            ),
            ["any text"],
        ),
    )
    for form in forms
} | {
    f"with-{word}": Case({**S, word: value}, ["x"], [1])
    for word, value in {
        "$id": "https://example.com/a.json",
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "none",
        "$anchor": "here",
        "$vocabulary": {},
        "title": "A title",
        "description": "What it is",
        "default": 7,
        "examples": ["a", {"$ref": "#/nowhere"}],
        "example": {"type": "wat"},
        "deprecated": True,
        "readOnly": True,
        "writeOnly": True,
        "x-order": 3,
        "x-enumNames": ["A"],
        "contentEncoding": "base64",
        "contentMediaType": "image/png",
        "contentSchema": {"type": "wat"},
        "externalDocs": {"url": "x"},
        "xml": {"name": "x"},
        "markdownDescription": "*it*",
        "errorMessage": "no",
        "additionalProperties": False,
        "minimum": 3,
        "items": {"type": "integer"},
        "minContains": 2,
    }.items()
}
REFERENCES = {
    "beside-a-description": Case({"$ref": "#/$defs/a", "description": "it", "$defs": {"a": S}}, ["x"], [1]),
    "beside-a-constraint": Case({"$ref": "#/$defs/a", "maxLength": 2, "$defs": {"a": S}}, ["ab"], ["abc", 1]),
    "definitions": Case({"$ref": "#/definitions/a", "definitions": {"a": I}}, [1], ["x"]),
    "components": Case(
        {"$ref": "#/components/schemas/Pet", "components": {"schemas": {"Pet": CAT}}}, [{"kind": "cat"}], [{}]
    ),
    "percent-encoded": Case({"$ref": "#/$defs/a%20b", "$defs": {"a b": I}}, [1], ["x"]),
    "with-tilde": Case({"$ref": "#/$defs/a~1b~0c", "$defs": {"a/b~c": I}}, [1], ["x"]),
    "through-a-list": Case(
        obj(a={"anyOf": [S, N]}, b={"$ref": "#/properties/a/anyOf/0"}),
        [{"a": None, "b": "x"}],
        [{"a": None, "b": None}],
    ),
    "by-anchor": Case({"$ref": "#here", "$defs": {"a": {"$anchor": "here", **I}}}, [1], ["x"]),
    "by-id": Case(
        {"$id": "https://e.com/s", "$ref": "https://e.com/item", "$defs": {"a": {"$id": "item", **I}}},
        [1],
        ["x"],
    ),
    "by-the-root-id": Case(
        {"$id": "https://e.com/s", "$ref": "https://e.com/s#/$defs/a", "$defs": {"a": I}}, [1], ["x"]
    ),
    "of-draft-7-ids": Case({"$ref": "#a", "definitions": {"x": {"$id": "#a", **I}}}, [1], ["x"]),
    "to-the-nearest-definitions": Case(
        obj(filter={"$ref": "#/$defs/F", "$defs": {"F": obj(a={"$ref": "#/$defs/G"}), "G": I}}),
        [{"filter": {"a": 1}}],
        [{"filter": {"a": "x"}}],
    ),
    "recursive": Case(
        obj(["v"], v=I, next={"anyOf": [{"$ref": "#"}, N]}),
        [{"v": 1, "next": {"v": 2, "next": None}}],
        [{"v": 1, "next": {"next": None}}],
    ),
    "recursive-definitions": Case(
        {
            "$ref": "#/$defs/N",
            "$defs": {"N": obj(["v"], v=I, kids={"type": "array", "items": {"$ref": "#/$defs/N"}})},
        },
        [{"v": 1, "kids": [{"v": 2, "kids": []}]}],
        [{"v": 1, "kids": [3]}],
    ),
    "dynamic": Case(
        {
            "$dynamicAnchor": "node",
            **obj(["v"], v=I, kids={"type": "array", "items": {"$dynamicRef": "#node"}}),
        },
        [{"v": 1, "kids": [{"v": 2}]}],
        [{"v": 1, "kids": [3]}],
    ),
    "recursive-ref": Case(
        obj(["v"], v=I, kids={"type": "array", "items": {"$recursiveRef": "#"}}),
        [{"v": 1, "kids": [{"v": 2}]}],
        [{"v": 1, "kids": [3]}],
    ),
    "a-property-named-so": Case(
        obj(**{"$ref": S, "enum": I, "const": S, "default": {"$ref": "#/$defs/a"}}) | {"$defs": {"a": I}},
        [{"$ref": "x", "enum": 1, "const": "x", "default": 1}],
        [{"$ref": "x", "enum": 1, "const": "x", "default": "x"}],
    ),
    "all-of-one": Case(
        obj(["a"], a={"allOf": [{"$ref": "#/$defs/E"}], "default": "x", "description": "it"})
        | {"$defs": {"E": {"enum": ["x", "y"]}}},
        [{"a": "x"}],
        [{"a": "z"}],
    ),
    "all-of-two": Case(
        {"allOf": [{"$ref": "#/$defs/A"}, obj(b=S)], "$defs": {"A": obj(a=I)}},
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"b": "x"}],
    ),
    "all-of-recursive": Case(
        {
            "$ref": "#/$defs/B",
            "$defs": {
                "A": obj(["a"], a=I),
                "B": {"allOf": [{"$ref": "#/$defs/A"}, obj(["a"], b={"$ref": "#/$defs/B"})]},
            },
        },
        [{"a": 1, "b": {"a": 2}}],
        [{"a": 1, "b": {}}],
    ),
    "all-of-closed": Case(
        {
            "allOf": [
                {**obj(["a"], a=I, b=I), "additionalProperties": False},
                {"properties": {"b": {"minimum": 3}}},
            ]
        },
        [{"a": 1, "b": 3}],
        [{"a": 1, "b": 2}],
    ),
    "null-of-openapi": Case({"type": "string", "nullable": True}, ["x", None], [1]),
    "null-beside-an-enum": Case({"type": "string", "enum": ["a"], "nullable": True}, ["a", None], ["b"]),
    "null-beside-a-reference": Case(
        {"allOf": [{"$ref": "#/$defs/a"}], "nullable": True, "$defs": {"a": I}}, [1, None], ["x"]
    ),
    "null-right-beside-a-reference": Case(
        {"$ref": "#/$defs/a", "nullable": True, "$defs": {"a": I}}, [1, None], ["x"]
    ),
    "no-null": Case({"type": "string", "nullable": False}, ["x"], [None]),
}
UNIONS = {
    "pydantic": Case(
        {**PETS, "discriminator": BY_KIND, "$defs": {"Cat": CAT, "Dog": DOG}},
        [{"kind": "cat"}, {"kind": "dog", "name": "x"}],
        [{"kind": "cow"}, {}],
    ),
    "pydantic-with-defaults": Case(
        {**PETS, "discriminator": BY_KIND, "$defs": {"Cat": UNTAGGED, "Dog": OTHER}},
        [{"kind": "cat", "lives": 1}, {"kind": "dog", "name": "x"}],
        [{"kind": "cat", "name": "x"}, {"lives": 1}],
    ),
    "openapi-by-name": Case(
        {
            **PETS,
            "discriminator": {"propertyName": "kind"},
            "$defs": {"Cat": obj(lives=I, kind=S), "Dog": obj(name=S, kind=S)},
        },
        [{"lives": 1, "kind": "Cat"}],
        [{"lives": 1, "kind": "Dog"}, {"lives": 1, "kind": "cat"}],
    ),
    "openapi-mapping": Case(
        {**PETS, "discriminator": BY_KIND, "$defs": {"Cat": obj(kind=S), "Dog": obj(kind=S)}},
        [{"kind": "cat"}, {"kind": "dog"}],
        [{"kind": "Cat"}],
    ),
    "any-of-with-discriminator": Case(
        {"anyOf": PETS["oneOf"], "discriminator": BY_KIND, "$defs": {"Cat": CAT, "Dog": DOG}},
        [{"kind": "dog"}],
        [{}],
    ),
    "one-of-types": Case({"oneOf": [S, I, N]}, ["x", 1, None], [1.5]),
    "one-of-consts": Case(
        {"oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]}, ["a", "b"], ["c"]
    ),
    "one-of-closed": Case(
        {"oneOf": [obj(a=I) | {"additionalProperties": False}, obj(b=I) | {"additionalProperties": False}]},
        [{"a": 1}, {"b": 1}],
        [{"a": 1, "b": 1}],
    ),
    "one-of-required": Case(
        {**obj(["z"], a=I, b=I, z=I), "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1, "z": 0}, {"b": 1, "z": 0}],
        [{"a": 1, "b": 1, "z": 0}, {"z": 0}],
    ),
    "one-of-formats": Case(
        {"oneOf": [{**S, "format": "date"}, {**S, "format": "ipv4"}]}, ["2024-01-02", "1.2.3.4"], ["x"]
    ),
    "one-of-bounds": Case({"type": "integer", "oneOf": [{"maximum": 3}, {"minimum": 7}]}, [3, 7], [5]),
    "any-of-required": Case(
        {**obj(["z"], a=I, b=I, z=I), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1, "b": 1, "z": 0}, {"b": 1, "z": 0}],
        [{"z": 0}],
    ),
    "any-of-beside-words": Case(
        {"type": "string", "anyOf": [{"maxLength": 1}, {"pattern": "^z+$"}]}, ["a", "zzz"], ["ab"]
    ),
    "any-of-with-types": Case(
        {"type": ["string", "integer"], "anyOf": [{"type": "string"}, {"minimum": 3}]}, ["a", 3], [2, None]
    ),
    "two-unions": Case(
        {"anyOf": [S, I], "oneOf": [{"type": "string", "maxLength": 1}, N]}, ["a"], [None, 1, "ab"]
    ),
    "types": Case(
        {"type": ["string", "integer", "null"], "maxLength": 2, "minimum": 3}, ["ab", 3, None], ["abc", 2]
    ),
    "a-type-in-capitals": Case(
        {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}, "required": ["a"]}, [{"a": "x"}], [{}]
    ),
    "never": Case({"anyOf": [S, {"not": {}}, False]}, ["x"], [1]),
}
VALUES = {
    "mixed": Case(
        {"enum": ["a", 1, None, True, 1.5, [1], {"a": 1}]}, ["a", 1, None, True, 1.5], ["b", False]
    ),
    "beside-a-type": Case({"type": "string", "enum": ["a", None, 3]}, ["a"], [None, 3]),
    "const-and-enum": Case({"const": "a", "enum": ["a", "b"]}, ["a"], ["b"]),
    "beside-all-else": Case(
        {"type": "string", "enum": ["a", "bb", "ccc"], "minLength": 2, "pattern": "b"}, ["bb"], ["a", "ccc"]
    ),
    "in-a-union": Case({"enum": ["a", 1, 2], "anyOf": [S, {"minimum": 2}]}, ["a", 2], [1]),
    "of-numbers": Case({"type": "integer", "enum": [1, 2.0, 3, 2.5]}, [1, 3], [4]),
    "many": Case({"enum": [f"value-{number}" for number in range(2000)]}, ["value-7"], ["value-2000"]),
    "not-one": Case({"type": "string", "enum": ["a", "b"], "not": {"const": "a"}}, ["b"], ["a"]),
}
NUMBERS = {
    "draft-4-exclusive": Case(
        {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5, "exclusiveMaximum": True},
        [4],
        [3, 5],
    ),
    "draft-4-inclusive": Case({"type": "integer", "minimum": 3, "exclusiveMinimum": False}, [3], [2]),
    "exclusive": Case({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2}, [1, 0.5], [0, 2]),
    "both-bounds": Case({"type": "integer", "minimum": 3, "exclusiveMinimum": 5}, [6], [5]),
    "halves-for-integers": Case({"type": "integer", "minimum": 0.5, "maximum": 2.5}, [1, 2], [0, 3]),
    "beyond-64-bits": Case({"type": "integer", "minimum": 0, "maximum": 2**64}, [5], [-1]),
    "of-a-double": Case(
        {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
        [1.5],
        ["x"],
    ),
    "safe-integers": Case({"type": "integer", "minimum": -(2**53 - 1), "maximum": 2**53 - 1}, [5, -5], ["x"]),
    "multiples-in-bounds": Case(
        {"type": "integer", "multipleOf": 8, "minimum": 60, "maximum": 256}, [64, 256], [60, 63]
    ),
    "multiples": Case({"type": "integer", "multipleOf": 5}, [10], [11]),
    "multiples-of-numbers": Case({"type": "number", "multipleOf": 5}, [10], [11]),
    "multiples-of-one": Case({"type": "integer", "multipleOf": 1, "minimum": 0}, [10], [-1]),
    "cents-of-integers": Case({"type": "integer", "multipleOf": 0.01}, [10], ["x"]),
    "without-a-type": Case({"minimum": 3}, [3, 3.5], [2]),
    "not-one": Case({"type": "integer", "not": {"minimum": 3}}, [2], [3]),
}
STRINGS = {
    "length-beside-format": Case(
        {**S, "format": "date-time", "maxLength": 40}, ["2024-01-02T03:04:05Z"], ["x"]
    ),
    "short-email": Case({**S, "format": "email", "maxLength": 20}, ["a@b.de"], ["a" * 15 + "@bbb.de"]),
    "long-email": Case({**S, "format": "email", "maxLength": 254, "minLength": 6}, ["a@b.de"], ["a@b.d"]),
    "uri-in-a-length": Case(
        {**S, "format": "uri", "minLength": 1, "maxLength": 2083}, ["https://example.com/a?b=c#d"], ["no uri"]
    ),
    "uuid-of-its-length": Case(
        {**S, "format": "uuid", "minLength": 36, "maxLength": 36},
        ["123e4567-e89b-12d3-a456-426614174000"],
        ["1"],
    ),
    "unknown-format-in-a-length": Case(
        {**S, "format": "password", "minLength": 8}, ["12345678"], ["1234567"]
    ),
    "pattern-in-a-length": Case(
        {**S, "pattern": "^[a-z0-9_-]+$", "minLength": 2, "maxLength": 64},
        ["ab", "a" * 64],
        ["a", "a" * 65, "A" * 3],
    ),
    "open-pattern-in-a-length": Case(
        {**S, "pattern": "[0-9]", "minLength": 8, "maxLength": 12},
        ["abcdefg1", "1" + "x" * 11],
        ["abcdefgh", "1"],
    ),
    "long-pattern": Case(
        {**S, "pattern": "^https://.*$", "maxLength": 2048},
        ["https://" + "a" * 100],
        ["http://", "https://" + "a" * 2041],
    ),
    "long-open-pattern": Case({**S, "pattern": "\\S", "minLength": 1, "maxLength": 4000}, ["abc"], ["", " "]),
    "pattern-and-format": Case(
        {**S, "format": "date", "pattern": "^2024-"}, ["2024-02-03"], ["2023-02-03", "2024-02-30"]
    ),
    "two-patterns": Case({"allOf": [{**S, "pattern": "^a"}, {"pattern": "b$"}]}, ["ab", "axb"], ["a", "b"]),
    "a-very-long-one": Case({**S, "maxLength": 1_000_000}, ["x"], [1]),
    "without-a-type": Case({"maxLength": 2}, ["ab"], ["abc"]),
    "not-empty": Case({**S, "not": {"const": ""}}, ["a"], [""]),
    "not-these": Case({**S, "not": {"enum": ["ab", "ac"]}}, ["a", "ad", "abc", ""], ["ab", "ac"]),
    "not-so": Case({**S, "maxLength": 5, "not": {"pattern": "^x"}}, ["a", "ax"], ["x", "xa"]),
}
ARRAYS = {
    "bare": Case({"type": "array"}, [[], [1, "x", {}]], [{}]),
    "tuple": Case(
        {"type": "array", "prefixItems": [I, S], "minItems": 2, "maxItems": 2}, [[1, "x"]], [[1], [1, "x", 2]]
    ),
    "tuple-of-draft-7": Case(
        {"type": "array", "items": [I, S], "additionalItems": False, "minItems": 2},
        [[1, "x"]],
        [["x", 1], [1, "x", 2]],
    ),
    "tuple-with-rest": Case({"type": "array", "prefixItems": [I], "items": S}, [[1, "x"]], [[1, 1], ["x"]]),
    "items-any": Case({"type": "array", "items": {}}, [[1, "x"]], ["x"]),
    "items-true": Case({"type": "array", "items": True}, [[1, "x"]], ["x"]),
    "items-none": Case({"type": "array", "items": False}, [[]], [[1]]),
    "contains": Case({"type": "array", "items": I, "contains": {"minimum": 5}}, [[7], [7, 1]], [[], [1]]),
    "unique-of-few": Case(
        {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
        [["a", "b"], ["b", "a"], []],
        [["a", "a"]],
    ),
    "unique-of-a-reference": Case(
        {
            "type": "array",
            "items": {"$ref": "#/$defs/e"},
            "uniqueItems": True,
            "minItems": 1,
            "$defs": {"e": {"enum": list("abcdefg")}},
        },
        [["a", "c"]],
        [["a", "a"], []],
    ),
    "one-at-most": Case(
        {"type": "array", "items": S, "uniqueItems": True, "maxItems": 1}, [["a"]], [["a", "b"]]
    ),
    "not-unique": Case({"type": "array", "items": S, "uniqueItems": False}, [["a", "a"]], ["x"]),
    "without-a-type": Case({"items": I, "minItems": 1}, [[1]], [[], ["x"]]),
    "unevaluated": Case({"type": "array", "prefixItems": [I], "unevaluatedItems": False}, [[1]], [[1, 2]]),
    "counts": Case(
        {"type": "array", "items": I, "minItems": 2, "maxItems": 3}, [[1, 2]], [[1], [1, 2, 3, 4]]
    ),
}
OBJECTS = {
    "anything": Case({}, [1, "x", {"a": [None]}], []),
    "true": Case(True, [1, "x", {"a": [None]}], []),
    "bare": Case({"type": "object"}, [{}, {"a": 1}], [1]),
    "any-others": Case({**obj(a=I), "additionalProperties": {}}, [{"a": 1, "b": [2]}], [{}]),
    "others": Case({**obj(a=I), "additionalProperties": S}, [{"a": 1, "b": "x"}], [{"a": 1, "b": 2}]),
    "no-others": Case({**obj(a=I), "additionalProperties": False}, [{"a": 1}], [{"a": 1, "b": 2}]),
    "mapping": Case({"type": "object", "additionalProperties": I}, [{"x": 1, "y": 2}], [{"x": "y"}]),
    "without-a-type": Case({"properties": {"a": I}, "required": ["a"]}, [{"a": 1}], [{}]),
    "required-only": Case({"type": "object", "required": ["a"]}, [{"a": 1}, {"a": "x", "b": 1}], [{}]),
    "required-elsewhere": Case(
        {**obj(["a", "b"], a=I), "additionalProperties": S},
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"a": 1, "b": 2}],
    ),
    "required-not-described": Case(obj(["a", "b"], a=I), [{"a": 1, "b": "x"}], [{"a": 1}]),
    "required-of-draft-3": Case(
        {"type": "object", "properties": {"a": {**I, "required": True}, "b": {**I, "required": False}}},
        [{"a": 1}],
        [{}],
    ),
    "a-property-that-is-true": Case(obj(a=True), [{"a": [1]}], [{}]),
    "a-property-that-is-false": Case(obj(["a"], a=I, b=False), [{"a": 1}], [{"a": 1, "b": 1}]),
    "a-property-never-of-zod": Case(obj(["a"], a=I, b={"not": {}}), [{"a": 1}], [{"a": 1, "b": 1}]),
    "names-listed": Case(
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": I},
        [{"a": 1}, {}],
        [{"c": 1}, {"a": "x"}],
    ),
    "names-of-an-enum": Case(
        {
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/E"},
            "additionalProperties": I,
            "$defs": {"E": {"enum": ["a"], "type": "string"}},
        },
        [{"a": 1}],
        [{"c": 1}],
    ),
    "names-of-a-pattern": Case(
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": I},
        [{"ab": 1}],
        [{"A": 1}, {"a": "x"}],
    ),
    "names-of-a-length": Case(
        {"type": "object", "propertyNames": {"minLength": 2, "maxLength": 3}}, [{"ab": 1}], [{"a": 1}]
    ),
    "names-of-a-format": Case(
        {"type": "object", "propertyNames": {"format": "uuid"}, "additionalProperties": I},
        [{"123e4567-e89b-12d3-a456-426614174000": 1}],
        [{"a": 1}],
    ),
    "names-of-strings": Case(
        {"type": "object", "propertyNames": S, "additionalProperties": I}, [{"a": 1}], [{"a": "x"}]
    ),
    "patterns": Case(
        {"type": "object", "patternProperties": {"^x-": S}, "additionalProperties": False},
        [{"x-a": "b"}],
        [{"a": "b"}, {"x-a": 1}],
    ),
    "patterns-apart": Case(
        {"type": "object", "patternProperties": {"^a": S, "^b": I}}, [{"a": "x", "b": 1}], [{"a": 1}]
    ),
    "patterns-beside-properties": Case(
        {**obj(a=I), "patternProperties": {"^x-": S}},
        [{"a": 1}, {"a": 1, "x-b": "c"}],
        [{"x-b": "c"}, {"a": 1, "x-b": 1}],
    ),
    "patterns-of-a-property": Case(
        {**obj(["x-a"], **{"x-a": {"maxLength": 2}}), "patternProperties": {"^x-": S}},
        [{"x-a": "b"}],
        [{"x-a": 1}, {"x-a": "bcd"}],
    ),
    "least-of-a-mapping": Case(
        {"type": "object", "additionalProperties": I, "minProperties": 1}, [{"a": 1}], [{}]
    ),
    "least-of-named": Case({**obj([], a=I, b=I), "minProperties": 1}, [{"a": 1}, {"b": 1}], []),
    "counted": Case(
        {"type": "object", "properties": {"a": I, "b": I}, "minProperties": 1, "maxProperties": 1},
        [{"a": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    "dependent": Case(
        {
            "type": "object",
            "properties": {"card": I, "address": S},
            "dependentRequired": {"card": ["address"]},
        },
        [{}, {"address": "x"}, {"card": 1, "address": "x"}],
        [{"card": 1}],
    ),
    "dependencies": Case(
        {
            "type": "object",
            "properties": {"a": I, "b": S},
            "dependencies": {"a": ["b"], "b": {"properties": {"b": {"maxLength": 1}}}},
        },
        [{}, {"b": "x"}, {"a": 1, "b": "x"}],
        [{"a": 1}, {"b": "xy"}],
    ),
    "dependent-schemas": Case(
        {"type": "object", "properties": {"a": I, "b": S}, "dependentSchemas": {"a": {"required": ["b"]}}},
        [{}, {"a": 1, "b": "x"}],
        [{"a": 1}],
    ),
    "if-then-else": Case(
        {
            **obj(["country"], country={"enum": ["US", "DE", "FR"]}, zip=S, plz=S),
            "if": {"properties": {"country": {"const": "US"}}, "required": ["country"]},
            "then": {"required": ["zip"]},
            "else": {"required": ["plz"]},
        },
        [{"country": "US", "zip": "x"}, {"country": "DE", "plz": "x"}],
        [{"country": "US"}, {"country": "US", "plz": "x"}, {"country": "FR", "zip": "x"}],
    ),
    "if-in-all-of": Case(
        {
            **obj(["a"], a=S, b=I),
            "allOf": [{"if": {"properties": {"a": {"const": "x"}}}, "then": {"required": ["b"]}}],
        },
        [{"a": "x", "b": 1}, {"a": "y"}],
        [{"a": "x"}],
    ),
    "not-both": Case({**obj([], a=I, b=I), "not": {"required": ["a", "b"]}}, [], [{"a": 1, "b": 1}]),
    "not-null": Case({"type": ["string", "null"], "not": {"type": "null"}}, ["x"], [None]),
    "not-that": Case(
        {**obj(a={"enum": [1, 2]}), "not": {"properties": {"a": {"const": 1}}}}, [{"a": 2}], [{"a": 1}]
    ),
    "unevaluated": Case(
        {"allOf": [obj(a=I)], "properties": {"b": S}, "unevaluatedProperties": False},
        [{"b": "x", "a": 1}],
        [{"a": 1, "c": 1}],
    ),
}

ALL = {
    f"{group}/{name}": case
    for group, cases in {
        "annotation": ANNOTATIONS,
        "reference": REFERENCES,
        "union": UNIONS,
        "value": VALUES,
        "number": NUMBERS,
        "string": STRINGS,
        "array": ARRAYS,
        "object": OBJECTS,
    }.items()
    for name, case in cases.items()
}


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker()


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
async def test_exactly_what_a_schema_allows_can_be_generated(walker: Walker, case: Case) -> None:
    wanted = StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(case.schema), "response_format")
    compiled = await walker.grammar_compiler.compile(wanted)

    def takes(value: Any) -> bool:
        texts = (json.dumps(value, ensure_ascii=False), json.dumps(value, separators=(",", ":")))
        return any(walker.takes(compiled, text) for text in texts)

    assert [value for value in case.good if not takes(value)] == []
    assert [value for value in case.bad if takes(value)] == []
