"""Finds every part of a body that can hold more than one value, from its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from engine.server.protocol.request_body import Strict
from engine.server.protocol.size_limit import Measure, SizeLimit

_DEEP = {
    "string": {Measure.CHARS, Measure.TEXT},
    "list": {Measure.VALUES},
    "object": {Measure.VALUES},
    "anything": {Measure.VALUES},
}
_COUNTED = {"list": {Measure.ENTRIES, Measure.INPUTS}, "object": {Measure.ENTRIES}}
_CHOICES = ("anyOf", "oneOf", "allOf")
_UNREAD = "Accepted, without effect."  # limited with the body as a whole


class Place(NamedTuple):
    """`path` is written as in size limits; `kind`: string, list, object, anything or number."""

    path: str
    kind: str


def places_of(model: type[Strict]) -> set[Place]:
    schema = model.model_json_schema()
    return set(_walk(schema, schema.get("$defs", {}), "", frozenset()))


def is_limited(place: Place, size_limits: tuple[SizeLimit, ...]) -> bool:
    deep, counted = _DEEP.get(place.kind, set()), _COUNTED.get(place.kind, set())
    return any(
        (limit.measure in deep and _is_within(place.path, limit.path))
        or (limit.measure in counted and place.path == limit.path)
        for limit in size_limits
    )


def _is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}["))


def _walk(
    schema: dict[str, Any], definitions: dict[str, Any], path: str, seen: frozenset[str]
) -> Iterator[Place]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in seen:
            yield from _walk(definitions[name], definitions, path, seen | {name})
        return
    choices = [choice for word in _CHOICES for choice in schema.get(word, ())]
    for choice in choices:
        yield from _walk(choice, definitions, path, seen)
    match schema.get("type"):
        case "string" if not {"enum", "const"} & schema.keys():
            yield Place(path, "string")
        case "array":
            yield Place(path, "list")
            yield from _walk(schema.get("items", {}), definitions, f"{path}[]", seen)
        case "object":
            if "properties" not in schema or schema.get("additionalProperties"):
                yield Place(path, "object")
            for name, inner in schema.get("properties", {}).items():
                yield from _walk(inner, definitions, f"{path}.{name}" if path else name, seen)
        case "integer" if not {"maximum", "exclusiveMaximum"} & schema.keys():
            yield Place(path, "number")
        case None if not choices and not {"enum", "const"} & schema.keys():
            if schema.get("description") != _UNREAD:
                yield Place(path, "anything")
