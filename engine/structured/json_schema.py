"""JSON schemas are enforced exactly; words that can't be enforced are refused by name.

Annotations (`title`, `default`, `contentEncoding`, `x-…`), unknown formats and unknown words assert nothing
and are ignored.
"""

from __future__ import annotations

from typing import Any

from engine.structured.json_normalise import SchemaNormaliser
from engine.structured.json_parts import SchemaErrors
from engine.structured.json_strings import write_strings


def normalise_json_schema(schema: Any, param: str, *, is_strict: bool = True, advice: str = "") -> Any:
    """The schema in a form that the compiler enforces.

    Raises InvalidRequest for a schema that can't be enforced, naming the path and keyword, with `advice`.
    Unless `is_strict`, words that can't be enforced are omitted: the result allows more than the schema, and
    never less.
    """
    errors = SchemaErrors(is_strict=is_strict, advice=advice)
    normalised = SchemaNormaliser(schema, param, errors).normalise()
    write_strings(normalised, errors)
    return normalised
