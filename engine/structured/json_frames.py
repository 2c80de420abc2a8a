"""Normalised schemas put together: as a part of other JSON, and as alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HOLE = "~"  # stands for the part that follows a schema


def framed(frame: Any, inner: Any) -> Any:
    """The schema of JSON of which one part follows `inner` and the rest is constant."""
    if frame == HOLE:
        return inner
    if isinstance(frame, dict):
        properties = {name: framed(value, inner) for name, value in frame.items()}
        definitions: dict[str, Any] = {}
        for one in properties.values():
            definitions |= one.pop("$defs", {}) if isinstance(one, dict) else {}
        return {
            "type": "object",
            "properties": properties,
            "required": list(frame),
            "additionalProperties": False,
            **({"$defs": definitions} if definitions else {}),
        }
    return {"const": frame}


def union(schemas: Sequence[Any]) -> dict[str, Any]:
    """One of several normalised schemas, each with definitions of its own."""
    definitions: dict[str, Any] = {}
    branches = []
    for index, schema in enumerate(schemas):
        own = _renamed(schema if isinstance(schema, dict) else {}, f"u{index}")
        definitions |= own.pop("$defs", {})
        branches.append(own)
    return {"anyOf": branches, **({"$defs": definitions} if definitions else {})}


def _renamed(schema: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The schema with its definitions under other names."""
    names = {f"#/$defs/{name}": f"#/$defs/{prefix}{name}" for name in schema.get("$defs", {})}

    def rename(value: Any) -> Any:
        if isinstance(value, list):
            return [rename(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            word: names.get(one, one)
            if word == "$ref" and isinstance(one, str)
            else (one if word in ("const", "enum") else rename(one))
            for word, one in value.items()
        }

    own: dict[str, Any] = rename(schema)
    if "$defs" in own:
        own["$defs"] = {f"{prefix}{name}": one for name, one in own["$defs"].items()}
    return own
