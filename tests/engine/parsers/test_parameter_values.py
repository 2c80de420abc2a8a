"""Values written as bare text become JSON, whatever the client's schema says of them."""

from __future__ import annotations

import json
import time

from engine.parsers.parameter_values import ParameterSchemas, to_json

SLOW = "^(a+)+$"


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
