"""Any schema is accepted or refused, and every output under an accepted one is valid."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import jsonschema_rs
import pytest

from engine.errors import InvalidRequest
from engine.structured.json_schema import normalise_json_schema
from engine.structured.spec import StructuredKind, StructuredOutput
from tests.engine.structured.walking import Walker

_NUM_SCHEMAS = 25  # of each seed
_TYPES = ["string", "integer", "number", "boolean", "null", "array", "object", "object"]
_NAMES = ["a", "b", "x-c", "kind"]
_VALUES = [1, 2, 5, 0, -1, 1.5, "a", "ab", "", None, True, False, [1], {"a": 1}, "2024-01-02"]


class Schemas:
    """Draws schemas from keywords that may contradict each other."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def root(self) -> dict[str, Any]:
        return {**self._object(0), "$defs": {"A": self._schema(1), "B": self._schema(1)}}

    def _schema(self, depth: int) -> Any:
        if self._draw.random() < 0.08:
            return self._draw.choice([True, {}, False])
        if depth > 3:
            return self._draw.choice(
                [{"type": "string"}, {"const": 1}, {"$ref": "#/$defs/A"}, {"type": "null"}]
            )
        return self._object(depth)

    def _object(self, depth: int) -> dict[str, Any]:
        draw, schema = self._draw, dict[str, Any]()
        if draw.random() < 0.8:
            schema["type"] = draw.choice([*_TYPES, ["string", "null"], ["object", "integer"]])
        for word, (chance, make) in self._words(depth + 1).items():
            if draw.random() < chance:
                schema[word] = make()
        return schema

    def _words(self, deep: int) -> dict[str, tuple[float, Any]]:
        draw, rare = self._draw, 0.1 if deep == 1 else 0.04
        schema = self._schema

        def few(least: int = 1) -> list[Any]:
            return [schema(deep) for _ in range(draw.randrange(least, 4))]

        return {
            "minLength": (0.1, lambda: draw.randrange(4)),
            "maxLength": (0.1, lambda: draw.randrange(8)),
            "pattern": (0.1, lambda: draw.choice(["^a", "b$", "[a-z]+", "^[a-c]{2,4}$"])),
            "format": (0.05, lambda: draw.choice(["date", "email", "uuid", "ipv4", "password", "int64"])),
            "minimum": (0.1, lambda: draw.choice([0, 1, -5, 2.5])),
            "exclusiveMaximum": (0.1, lambda: draw.choice([3, 10, 100])),
            "multipleOf": (0.04, lambda: draw.choice([1, 2, 5])),
            "items": (0.15, lambda: schema(deep)),
            "prefixItems": (0.05, few),
            "maxItems": (0.1, lambda: draw.randrange(4)),
            "contains": (0.03, lambda: schema(deep)),
            "properties": (
                0.5,
                lambda: {name: schema(deep) for name in draw.sample(_NAMES, draw.randrange(4))},
            ),
            "required": (0.3, lambda: draw.sample(_NAMES, draw.randrange(3))),
            "additionalProperties": (0.2, lambda: draw.choice([True, False, schema(deep)])),
            "patternProperties": (0.05, lambda: {draw.choice(["^x-", "^a", "b$"]): schema(deep)}),
            "propertyNames": (
                0.05,
                lambda: draw.choice([{"pattern": "^[a-z]"}, {"enum": ["a"]}, {"maxLength": 3}]),
            ),
            "maxProperties": (0.05, lambda: draw.randrange(4)),
            "dependentRequired": (0.05, lambda: {draw.choice(_NAMES): draw.sample(_NAMES, 1)}),
            "unevaluatedProperties": (0.03, lambda: False),
            "anyOf": (2 * rare, few),
            "oneOf": (rare, few),
            "allOf": (rare, few),
            "not": (rare / 2, lambda: schema(deep + 1)),
            "if": (rare / 2, lambda: schema(deep + 1)),
            "then": (rare, lambda: schema(deep + 1)),
            "$ref": (rare / 2, lambda: draw.choice(["#/$defs/A", "#/$defs/B"])),
            "enum": (0.04, lambda: draw.sample(_VALUES, 3)),
            "const": (0.03, lambda: draw.choice(_VALUES)),
        }


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker()


@pytest.mark.parametrize("seed", range(4))
async def test_every_output_is_valid(walker: Walker, seed: int) -> None:
    schemas = Schemas(seed)
    num_valid = 0
    for _ in range(_NUM_SCHEMAS):
        schema = schemas.root()
        wanted = StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(schema), "response_format")
        try:
            compiled = await walker.grammar_compiler.compile(wanted)
        except InvalidRequest as error:
            assert "compiled" not in error.message, schema  # the compiler's own complaints
            continue
        text = walker.walk(compiled, seed, max_tokens=200)
        if text is not None:
            value = json.loads(text, parse_float=lambda one: max(-1e300, min(float(one), 1e300)))
            jsonschema_rs.validate(schema, value, validate_formats=True)
            num_valid += 1
    assert num_valid


@pytest.mark.parametrize("seed", range(4))
def test_without_strict_no_schema_is_refused(seed: int) -> None:
    schemas = Schemas(seed)
    for _ in range(4 * _NUM_SCHEMAS):
        normalise_json_schema(schemas.root(), "tools", is_strict=False)


def _nested(word: str, depth: int, *, in_list: bool = True) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {word: [schema] if in_list else schema}
    return schema


_BRANCHES = {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
LARGE: dict[str, Any] = {
    "nested allOf": _nested("allOf", 400),
    "nested anyOf": _nested("anyOf", 400),
    "nested not": _nested("not", 400, in_list=False),
    "nested items": _nested("items", 400, in_list=False),
    "unions of unions": {"type": "object", "allOf": [_BRANCHES] * 30},
    "many dependent properties": {
        "properties": {f"p{n}": {} for n in range(30)},
        "dependentRequired": {f"p{n}": [f"p{n + 1}"] for n in range(29)},
    },
    "branches that overlap": {"oneOf": [{"properties": {f"p{n}": {"type": "string"}}} for n in range(100)]},
    "values": {"enum": [f"v{n}" for n in range(15_000)]},
    "constants": {"oneOf": [{"const": f"v{n}"} for n in range(2000)]},
    "references to each other": {
        "$ref": "#/$defs/d0",
        "$defs": {
            f"d{n}": {
                "properties": {f"p{m}": {"$ref": f"#/$defs/d{m}"} for m in range(40)},
                "allOf": [{"$ref": f"#/$defs/d{n + 1}"}] if n < 39 else [True],
            }
            for n in range(40)
        },
    },
    "patterns in each other": {"allOf": [{"pattern": f"(a|b)*{letter}(a|b){{12}}"} for letter in "abab"]},
}


@pytest.mark.parametrize("schema", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("is_strict", [True, False])
def test_a_large_schema_is_accepted_or_refused_quickly(schema: Any, is_strict: bool) -> None:
    begun = time.process_time()
    try:
        normalise_json_schema(schema, "tools", is_strict=is_strict)
    except InvalidRequest:
        assert is_strict
    assert time.process_time() - begun < 5
