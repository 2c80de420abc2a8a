"""Values written as bare text become JSON, whatever the client's schema says."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from engine.text.parsers.parameter_values import ParameterSchemas, to_json

SLOW = "^(a+)+$"


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        ({"$ref": "#/$defs/a~1b", "description": "it"}, "3", "3"),
        ({"$ref": "#/$defs/a%20c"}, "3", "3"),
        ({"allOf": [{"$ref": "#/$defs/a~1b"}], "default": 1}, "3", "3"),
        ({"type": "integer", "format": "int64"}, "3", "3"),
        ({"type": "string", "format": "int64"}, "3", '"3"'),
        ({"type": "integer", "nullable": True}, "null", "null"),
        ({"type": "string", "nullable": True}, "null", "null"),
        ({"type": "string"}, "null", '"null"'),
        ({"oneOf": [{"const": 1}, {"const": "two"}]}, "two", '"two"'),
    ],
)
def test_references_and_annotations_are_followed(schema: Any, written: str, value: str) -> None:
    definitions = {"a/b": {"type": "integer"}, "a c": {"type": "integer"}}
    schemas = ParameterSchemas({"properties": {"x": schema}, "$defs": definitions})
    assert to_json(written, schemas.find("x")) == value


def test_a_clients_expression_is_not_run() -> None:
    """The second would take a minute: a client's expression must not stop the event loop."""
    schemas = ParameterSchemas(
        {
            "properties": {"x": {"type": "string", "pattern": SLOW}},
            "patternProperties": {SLOW: {"type": "integer"}},
        }
    )
    started = time.perf_counter()
    assert json.loads(to_json("a" * 40 + "!", schemas.find("x"))) == "a" * 40 + "!"
    assert to_json("5", schemas.find("a" * 40 + "!")) == "5"
    assert time.perf_counter() - started < 1
