"""Whether the branches of a oneOf exclude each other, as the compiler takes a oneOf for an anyOf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def types_of(schema: Mapping[str, Any]) -> list[str] | None:
    value = schema.get("type")
    return None if value is None else value if isinstance(value, list) else [value]


def are_disjoint(branches: Sequence[Any]) -> bool:
    """Whether no instance can satisfy two of them, as far as can be seen at once."""
    seen = [branch for branch in branches if isinstance(branch, dict)]
    if len(seen) < len(branches):
        return False
    pairs = [(a, b) for index, a in enumerate(seen) for b in seen[index + 1 :]]
    return all(_exclude_each_other(a, b) for a, b in pairs)


def _exclude_each_other(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    a_types, b_types = types_of(a), types_of(b)
    if a_types is not None and b_types is not None and not _widen(a_types) & _widen(b_types):
        return True
    a_values, b_values = _values(a), _values(b)
    if a_values is not None and b_values is not None:
        return not any(value in b_values for value in a_values)
    shared = set(a.get("required", [])) & set(b.get("required", []))
    return any(
        _exclude_each_other(a["properties"][name], b["properties"][name])
        for name in shared
        if isinstance(a.get("properties", {}).get(name), dict)
        and isinstance(b.get("properties", {}).get(name), dict)
    )


def _widen(types: Sequence[str]) -> set[str]:
    return {"number" if name == "integer" else name for name in types}


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")
