"""Normalises the words of a JSON schema about objects."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.structured.automaton import State, intersection
from engine.structured.json_arrays import Enumerate, Normalise
from engine.structured.json_parts import MAX_COUNT, SchemaErrors, SchemaPart, mapping
from engine.structured.json_strings import name_pattern
from engine.structured.json_texts import Text, matches, read_count, read_text
from engine.structured.json_values import children_of
from engine.structured.regex import Node, UnsupportedPattern, search
from engine.structured.regex_parser import parse

MAX_OPTIONAL = 800  # properties that aren't required: each may come next
_MAX_COMBINED = 256  # ways to have as many properties as minProperties and maxProperties allow
_MAX_COMPARED_STATES = 1024


@dataclass(slots=True)
class _Object:
    required: dict[str, None]
    least: int
    most: int | None
    properties: dict[str, Any] = field(default_factory=dict)
    others: Any = False  # schema of properties that aren't named; False = there are none
    patterns: dict[str, Any] = field(default_factory=dict)  # schemas by pattern of names, instead


def normalise_objects(
    parts: Sequence[SchemaPart], normalise: Normalise, enumerate_values: Enumerate, errors: SchemaErrors
) -> dict[str, Any] | None:
    """None if no object is possible."""
    counts = [
        read_count(part, "maxProperties", MAX_COUNT, errors)
        for part in parts
        if "maxProperties" in part.schema
    ]
    spec = _Object(
        required=dict.fromkeys(name for part in parts for name in _required(part, errors)),
        least=max((read_count(part, "minProperties", 0, errors) for part in parts), default=0),
        most=min(counts, default=None),
    )
    names = [part.child("propertyNames") for part in parts if "propertyNames" in part.schema]
    listed = enumerate_values(names)
    _name_properties(spec, parts, normalise, listed)
    if names and listed is None:
        _keep_names(spec, names, errors)
    if any(name not in spec.properties for name in spec.required):
        return None
    if not names:
        _add_patterns(spec, parts, normalise, errors)
    elif listed is None and _patterns_of(parts):
        errors.refuse(names[0].path, "", "propertyNames beside patternProperties is not supported")
        spec.patterns, spec.others = {}, True
    return _written(spec, parts, errors)


def _required(part: SchemaPart, errors: SchemaErrors) -> list[str]:
    """Reads a list of names, and draft 3's form, still used by some tools: `true` in a property's schema."""
    spec = part.schema.get("required", [])
    if not isinstance(spec, bool | list) or (
        isinstance(spec, list) and any(not isinstance(n, str) for n in spec)
    ):
        errors.malformed(part.path, "required", "must be a list of names")
        spec = []
    own = mapping(part.schema, "properties").items()
    marked = [name for name, child in own if isinstance(child, dict) and child.get("required") is True]
    return [*(spec if isinstance(spec, list) else ()), *marked]


def _name_properties(
    spec: _Object, parts: Sequence[SchemaPart], normalise: Normalise, listed: Sequence[Any] | None
) -> None:
    named = dict.fromkeys(name for part in parts for name in mapping(part.schema, "properties"))
    is_open = any(
        "additionalProperties" in part.schema or "unevaluatedProperties" in part.schema for part in parts
    )
    is_bare = not any("properties" in part.schema or "patternProperties" in part.schema for part in parts)
    if listed is not None:
        may_be = [name for name in listed if isinstance(name, str)]
        named = dict.fromkeys(may_be if is_open or is_bare else [name for name in named if name in may_be])
    else:
        named |= spec.required
    for name in named:
        normalised = normalise([child for part in parts for child in _children(part, name, parts)])
        if normalised is not False:
            spec.properties[name] = {} if normalised is True else normalised
    if listed is None and (is_open or is_bare):
        spec.others = normalise([other for part in parts for other in _others(part)])


def _children(part: SchemaPart, name: str, parts: Sequence[SchemaPart]) -> list[SchemaPart]:
    """A schema's children for a name. A property that it doesn't evaluate may be evaluated by a schema beside
    it: it is like an additional property only if no other names it."""
    is_known = any(name in mapping(neighbour.schema, "properties") for neighbour in parts)
    if part.is_around and is_known and "unevaluatedProperties" in part.schema:
        part = part.without("unevaluatedProperties")
    return children_of(part, name)


def _others(part: SchemaPart) -> list[SchemaPart]:
    words = ("additionalProperties", "unevaluatedProperties")
    return [part.child(word) for word in words if word in part.schema][:1]


def _keep_names(spec: _Object, names: Sequence[SchemaPart], errors: SchemaErrors) -> None:
    """Keeps properties with allowed names, and restricts other names to a pattern."""
    try:
        text = read_text(names, errors)
        if text is None:
            spec.properties, spec.others = {}, False
            return
        nodes = [*text.known, *([text.length] if text.length else [])]
        spec.properties = {
            name: one
            for name, one in spec.properties.items()
            if all(matches(name, node) is not False for node in nodes)
        }
        if spec.others is not False:
            spec.patterns = {name_pattern(text, errors): spec.others}
            spec.others = False
    except UnsupportedPattern as error:
        errors.refuse(names[0].path, "pattern", f"can't be enforced: {error}")


def _patterns_of(parts: Sequence[SchemaPart]) -> dict[str, list[SchemaPart]]:
    """Each pattern of names with its schemas."""
    found: dict[str, list[SchemaPart]] = {}
    for part in parts:
        for pattern in mapping(part.schema, "patternProperties"):
            found.setdefault(pattern, []).append(part.child("patternProperties", pattern))
    return found


def _add_patterns(
    spec: _Object, parts: Sequence[SchemaPart], normalise: Normalise, errors: SchemaErrors
) -> None:
    """Adds names by pattern; overlapping patterns and names are omitted or refused."""
    given = _patterns_of(parts)
    if not given:
        return
    path = next((part.path for part in parts if "patternProperties" in part.schema), "")
    nodes: dict[str, Node] = {}
    for pattern in given:
        try:
            nodes[pattern] = search(parse(pattern))
        except UnsupportedPattern as error:
            errors.refuse(path, "patternProperties", f"can't be enforced: {error}")
    for pattern, node in nodes.items():
        others = [other for part in parts if pattern not in _patterns_of([part]) for other in _others(part)]
        normalised = normalise([*given[pattern], *others])
        # A named property that also matches would appear twice; so the object has only the named ones.
        is_named = any(matches(name, node) is not False for name in spec.properties)
        if normalised is not False and not is_named:
            spec.patterns[_name_pattern(node)] = normalised
    if not _are_disjoint(list(nodes.values())):
        errors.refuse(path, "patternProperties", "with patterns that match the same name is not supported")
        spec.patterns, spec.others = {}, True
    elif spec.patterns or spec.properties:
        spec.others = False  # names that match none of the patterns can't be expressed


def _name_pattern(node: Node) -> str:
    return name_pattern(Text("", (node,)), SchemaErrors(is_strict=False))


def _are_disjoint(nodes: Sequence[Node]) -> bool:
    pairs = [(a, b) for index, a in enumerate(nodes) for b in nodes[index + 1 :]]
    return all(intersection(pair, max_states=_MAX_COMPARED_STATES) == (State(False, ()),) for pair in pairs)


def _written(spec: _Object, parts: Sequence[SchemaPart], errors: SchemaErrors) -> dict[str, Any] | None:
    is_closed = spec.others is False and not spec.patterns
    path = next((p.path for p in parts if "minProperties" in p.schema or "maxProperties" in p.schema), "")
    if spec.most is not None and len(spec.required) > spec.most:
        return None
    if len(spec.properties) - len(spec.required) > MAX_OPTIONAL:
        what = f"with more than {MAX_OPTIONAL} that aren't required is not supported"
        errors.refuse(parts[0].path, "properties", what)
        return {"type": "object"}
    if spec.least > 1 and not is_closed:
        if len(spec.properties) < spec.least:
            errors.refuse(path, "minProperties", "is supported up to 1, or with enough named properties")
            spec.least = 1
        else:  # unknown names could repeat
            spec.others, spec.patterns, is_closed = False, {}, True
    if is_closed and spec.least > len(spec.properties):
        return None
    if is_closed and spec.most is not None and spec.most >= len(spec.properties):
        spec.most = None
    if spec.least <= len(spec.required):
        spec.least = 0
    if spec.properties and spec.patterns and (spec.least or spec.most is not None):
        spec.patterns = {}
    if spec.properties and (spec.least or spec.most is not None) and _num_of_counts(spec) > _MAX_COMBINED:
        word = "minProperties" if spec.least else "maxProperties"
        errors.refuse(path, word, "beside so many properties that aren't required is not supported")
        spec.least, spec.most = 0, None
    return _as_schema(spec)


def _as_schema(spec: _Object) -> dict[str, Any]:
    normalised: dict[str, Any] = {"type": "object"}
    if spec.properties or not spec.patterns:
        normalised |= {"properties": spec.properties, "required": list(spec.required)}
    if spec.patterns:
        normalised["patternProperties"] = spec.patterns
    normalised["additionalProperties"] = False if spec.patterns else spec.others
    if spec.properties and (spec.least or spec.most is not None):
        return {"anyOf": [{**normalised, **one} for one in _of_counts(spec)]}
    normalised |= {"minProperties": spec.least} if spec.least else {}
    normalised |= {} if spec.most is None else {"maxProperties": spec.most}
    return normalised


def _num_of_counts(spec: _Object) -> int:
    optional = len(spec.properties) - len(spec.required)
    least = max(spec.least - len(spec.required), 0)
    most = optional if spec.most is None else min(spec.most - len(spec.required), optional)
    sizes = (least,) if most == optional else range(least, most + 1)
    return sum(math.comb(optional, size) for size in sizes)


def _of_counts(spec: _Object) -> Iterator[dict[str, Any]]:
    """The ways to have so many of the named properties; the compiler counts only names that are required."""
    optional = [name for name in spec.properties if name not in spec.required]
    least = max(spec.least - len(spec.required), 0)
    most = len(optional) if spec.most is None else min(spec.most - len(spec.required), len(optional))
    for size in (least,) if most == len(optional) else range(least, most + 1):
        for chosen in itertools.combinations(optional, size):
            # Without a maximum, the chosen are the first that there are.
            after = optional[optional.index(chosen[-1]) + 1 :] if chosen and most == len(optional) else ()
            kept = {*spec.required, *chosen, *after} if size else {*spec.required, *after}
            yield {
                "properties": {name: one for name, one in spec.properties.items() if name in kept},
                "required": [*spec.required, *chosen],
            }
