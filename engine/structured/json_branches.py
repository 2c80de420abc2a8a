"""Whether the branches of a oneOf exclude each other; the compiler treats a oneOf as an anyOf."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.structured.automaton import State, intersection
from engine.structured.json_parts import are_equal, canonical, type_of
from engine.structured.json_strings import IMPLIED, TEXT
from engine.structured.json_texts import Text

_MAX_STATES = 256

Target = Callable[[Any], Any]
"""A normalised schema, or the schema it refers to."""


def overlapping(branches: Sequence[Any], target: Target) -> list[tuple[int, int]]:
    """Pairs of branches that one value could satisfy, as far as can be decided."""
    seen = [target(branch) for branch in branches]
    values = [listed_values(branch) for branch in seen]
    if None not in values:
        every = [canonical(value) for listed in values for value in listed or ()]
        if len(set(every)) == len(every):
            return []
    return [
        (i, j)
        for i, one in enumerate(seen)
        for j, other in enumerate(seen)
        if i < j and not _exclude_each_other(one, other, target)
    ]


def _exclude_each_other(a: Any, b: Any, target: Target, depth: int = 0) -> bool:
    a, b = target(a), target(b)
    if not isinstance(a, dict) or not isinstance(b, dict) or depth > 8:
        return False
    for one, other in ((a, b), (b, a)):
        if "anyOf" in one:
            return all(_exclude_each_other(branch, other, target, depth + 1) for branch in one["anyOf"])
    a_values, b_values = listed_values(a), listed_values(b)
    if a_values is not None and b_values is not None:
        return not any(are_equal(a_value, b_value) for a_value in a_values for b_value in b_values)
    a_types, b_types = _types(a), _types(b)
    # A schema without a type also accepts any value of a type that none of its words is about.
    is_typed = not a.get(IMPLIED) and not b.get(IMPLIED)
    if a_types is not None and b_types is not None and not a_types & b_types:
        return is_typed
    if isinstance(a.get(TEXT), Text) and isinstance(b.get(TEXT), Text):
        return _texts_exclude(a[TEXT], b[TEXT])
    return _properties_exclude(a, b, target, depth)


def _properties_exclude(a: Mapping[str, Any], b: Mapping[str, Any], target: Target, depth: int) -> bool:
    """By a required property that can't satisfy both, or that the other schema doesn't have."""
    a_names, b_names = a.get("properties", {}), b.get("properties", {})
    a_needs, b_needs = set(a.get("required", ())), set(b.get("required", ()))
    if any(
        _exclude_each_other(a_names[name], b_names[name], target, depth + 1)
        for name in a_needs & b_needs
        if name in a_names and name in b_names
    ):
        return True
    return (
        _is_closed(a) and _is_closed(b) and bool(a_needs - b_names.keys()) and bool(b_needs - a_names.keys())
    )


def _is_closed(schema: Mapping[str, Any]) -> bool:
    return (
        "properties" in schema
        and not schema.get("additionalProperties")
        and "patternProperties" not in schema
    )


def _texts_exclude(a: Text, b: Text) -> bool:
    if (a.most is not None and b.least > a.most) or (b.most is not None and a.least > b.most):
        return True
    wanted = (*a.wanted, *b.wanted)
    return bool(wanted) and intersection(wanted, max_states=_MAX_STATES) == (State(False, ()),)


def listed_values(schema: Any) -> list[Any] | None:
    if not isinstance(schema, dict):
        return None
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _types(schema: Mapping[str, Any]) -> set[str] | None:
    values = listed_values(schema)
    if values is not None:
        kinds = {type_of(value) for value in values}
        return {"number" if kind == "integer" else kind for kind in kinds}
    if TEXT in schema:
        return {"string"}
    named = schema.get("type")
    listed = named if isinstance(named, list) else [named]
    return None if named is None else {"number" if name == "integer" else str(name) for name in listed}
