"""What a tool's schema says of a value that was written as bare text."""

from __future__ import annotations

from typing import Any

import pytest

from engine.parsers.parameter_values import ParameterSchemas, to_json


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
def test_references_and_annotations_are_read_as_elsewhere(schema: Any, written: str, value: str) -> None:
    definitions = {"a/b": {"type": "integer"}, "a c": {"type": "integer"}}
    schemas = ParameterSchemas({"properties": {"x": schema}, "$defs": definitions})
    assert to_json(written, schemas.find("x")) == value
