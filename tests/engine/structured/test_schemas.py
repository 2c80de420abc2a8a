"""Whatever a model generates under a schema is valid, and no mask allows a dead end."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from engine.errors import InvalidRequest
from engine.structured.spec import StructuredKind, StructuredOutput
from tests.engine.structured.walking import Walker

_WALKS = 6


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker()


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: list[dict[str, Any]] = [
    _object(a={"type": "string", "maxLength": 3}),
    _object(a={"type": "string", "maxLength": 40}, b={"type": "integer"}),
    _object(a={"type": "string", "maxLength": 400}, b={"type": "boolean"}),
    _object(a={"type": "string", "minLength": 1}),
    _object(a={"type": "string", "minLength": 12}),
    _object(a={"type": "string", "minLength": 5, "maxLength": 6}),
    _object(a={"type": "string", "pattern": "^.{2,30}$"}),
    _object(a={"type": "string", "pattern": "^[^,]{0,5},[^,]+$"}),
    _object(a={"type": "string", "pattern": '^say "[a-z ]{1,9}"$'}),
    _object(a={"type": "string", "format": "date"}, b={"type": "string", "format": "ipv4"}),
    _object(a={"enum": ["x", 'y"z', 3, None]}, b={"const": {"k": [1]}}),
    _object(a={"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 1, "maxItems": 3}),
    _object(a={"type": ["string", "null"], "maxLength": 5}, b={"type": "string", "maxLength": 5}),
    _object(a={"anyOf": [{"type": "null"}, {"type": "string", "minLength": 2, "maxLength": 8}]}),
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema["properties"])[:60])
async def test_every_walk_ends_in_a_valid_value(walker: Walker, schema: dict[str, Any]) -> None:
    wanted = StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(schema), "response_format")
    compiled = await walker.grammar_compiler.compile(wanted)

    outputs = [walker.walk(compiled, seed) for seed in range(_WALKS)]

    whole = [output for output in outputs if output is not None]
    assert whole
    for output in whole:
        jsonschema_rs.validate(schema, json.loads(output), validate_formats=True)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "object", "if": {"contains": {}}, "then": {"required": ["a"]}}, "if"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)"}, "pattern"),
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"type": "wat"}, "type"),
        ({"const": "c", "enum": ["a"]}, "no value satisfies"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no value satisfies"),
        ({"type": "integer", "allOf": [{"type": "string"}]}, "no value satisfies"),
        ({"type": "object", "required": ["a"], "properties": {}, "additionalProperties": False}, "no value"),
        (False, "no value satisfies"),
        ({"not": {}}, "not"),
        ({"type": "array", "contains": {"type": "null"}, "maxContains": 1}, "maxContains"),
        ({"type": "number", "multipleOf": 0.5}, "multipleOf"),
        ({"type": "integer", "multipleOf": 7, "minimum": 0}, "multipleOf"),
        ({"type": "object", "additionalProperties": True, "minProperties": 2}, "minProperties"),
        (
            {"type": "object", "patternProperties": {"a": {"const": 1}, "b": {"const": 2}}},
            "patternProperties",
        ),
        (
            {"type": "object", "patternProperties": {"a": {}}, "propertyNames": {"maxLength": 2}},
            "propertyNames",
        ),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
        ({"oneOf": [{"type": "boolean"}, {"items": {"type": "string"}}]}, "oneOf"),
        ({"$ref": "#"}, r"\$ref refers to itself directly"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, r"\$ref refers to itself directly"),
        ({"$ref": "#/$defs/a"}, r"\$ref '#/\$defs/a' points to nothing"),
        ({"$ref": "#anchor"}, "no \\$anchor has that name"),
        ({"$ref": "https://example.com/schema"}, r"must point into the schema itself"),
        ({"type": "object", "not": {"additionalProperties": False}}, "not with additionalProperties"),
        ({"enum": [2**63]}, "64 bits"),
        ({"properties": {f"p{n}": {} for n in range(1000)}}, "properties with more than 800"),
        ({"anyOf": []}, "anyOf must be a list"),
        ({"minLength": "3"}, "minLength must be a whole number"),
        ({"properties": []}, "properties must be an object"),
        ({"items": 3}, "a schema is an object"),
    ],
)
async def test_a_word_that_can_not_be_enforced_is_named(walker: Walker, schema: Any, word: str) -> None:
    wanted = StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(schema), "response_format")

    with pytest.raises(InvalidRequest, match=word):
        await walker.grammar_compiler.compile(wanted)
