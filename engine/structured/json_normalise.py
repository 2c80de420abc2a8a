"""Normalises a client's JSON schema to an equivalent one with few words, all of which the compiler enforces.

References are resolved, `allOf` and words beside a combination are merged, conditions become alternatives.
The result has `type`, `anyOf`, `enum`, `const`, `$ref` into its `$defs`, and for each type its own words; the
compiler refuses many others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.errors import InvalidRequest
from engine.structured.json_arrays import normalise_arrays
from engine.structured.json_expand import SchemaExpander
from engine.structured.json_negation import CannotNegate, alternatives
from engine.structured.json_numbers import normalise_numbers
from engine.structured.json_objects import normalise_objects
from engine.structured.json_parts import (
    ASSERTIONS,
    MAX_DEPTH,
    NOT_PATTERN,
    NOT_VALUES,
    TYPES,
    SchemaErrors,
    SchemaPart,
    are_equal,
    common_types,
    implied_types,
)
from engine.structured.json_references import references_of
from engine.structured.json_strings import IMPLIED, TEXT
from engine.structured.json_texts import read_text
from engine.structured.json_union import Unions, merged
from engine.structured.json_values import is_writable

_CONDITIONS = ("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies")
_SIMPLE = frozenset(("boolean", "null"))


class SchemaNormaliser:
    """Normalises one schema."""

    def __init__(self, root: Any, param: str, errors: SchemaErrors) -> None:
        self._param = param
        self._errors = errors
        self._expander = SchemaExpander(root, param, errors)
        self._unions = Unions(self._expander, errors, self._normalise, self._target)
        self._names: dict[tuple[str, ...], str] = {}  # in `_definitions`, by the parts normalised there
        self._definitions: dict[str, Any] = {}
        self._waiting: list[tuple[str, list[SchemaPart], int]] = []
        self._root = SchemaPart.at(root, param)

    def normalise(self) -> Any:
        """A schema, or True for anything. Raises InvalidRequest."""
        normalised = self._normalise([self._root], 0, is_apart=True)
        while self._waiting:
            name, parts, depth = self._waiting.pop()
            self._define(name, parts, depth)
        if normalised is False:
            self._errors.malformed(*self._ruled_out([self._root]))
            return True
        if isinstance(normalised, dict):
            normalised = dict(normalised)
        if self._definitions and isinstance(normalised, dict):
            normalised["$defs"] = self._definitions
        return normalised

    def _ruled_out(self, parts: Sequence[SchemaPart]) -> tuple[str, str, str]:
        for part in parts:
            if isinstance(part.schema, dict) and "not" in part.schema:
                return part.path, "not", "leaves no value that satisfies the schema"
        path = parts[0].path if parts else self._param
        return path, "", "no value satisfies the schema: its conditions contradict each other"

    def _normalise(self, parts: Sequence[SchemaPart], depth: int, *, is_apart: bool = False) -> Any:
        """All of them combined; False if no value satisfies them. `is_apart`: without a name of its own."""
        return self._unless_lenient(lambda: self._normalise_expanded(parts, depth, is_apart))

    def _unless_lenient(self, normalise: Callable[[], Any]) -> Any:
        try:
            return normalise()
        except InvalidRequest:
            if self._errors.is_strict:
                raise
            return True  # too deep, too many, or an unresolved reference: the schema isn't strict

    def _normalise_expanded(self, parts: Sequence[SchemaPart], depth: int, is_apart: bool) -> Any:
        if depth > MAX_DEPTH:
            path = parts[0].path
            raise InvalidRequest(f"{path:.200}: the schema is nested more than {MAX_DEPTH} deep.", param=path)
        expanded = self._expander.expand(parts)
        if any(part.schema is False for part in expanded):
            return False
        expanded = [part for part in expanded if not part.is_empty]
        if not expanded:
            return True
        key = tuple(sorted({part.key for part in expanded}))
        if key in self._names:
            return {"$ref": f"#/$defs/{self._names[key]}"}
        is_shared = any(isinstance(part.schema, dict) and references_of(part.schema) for part in parts)
        if is_apart or not is_shared:
            return self._combine(expanded, depth)
        name = self._names[key] = f"d{len(self._names)}"
        self._waiting.append((name, expanded, 0))
        return {"$ref": f"#/$defs/{name}"}

    def _define(self, name: str, parts: list[SchemaPart], depth: int) -> None:
        self._definitions[name] = {}
        normalised = self._unless_lenient(lambda: self._combine(parts, depth))
        if normalised is False:
            self._errors.malformed(*self._ruled_out(parts))
            normalised = True
        self._definitions[name] = {} if normalised is True else normalised

    def _target(self, normalised: Any) -> Any:
        """The schema that a reference leads to, normalised now if it still waits."""
        seen = set()
        while isinstance(normalised, dict) and "$ref" in normalised:
            name = normalised["$ref"].rpartition("/")[2]
            if name in seen:
                return {}
            seen.add(name)
            for index, (waiting, parts, depth) in enumerate(self._waiting):
                if waiting == name:
                    del self._waiting[index]
                    self._define(name, parts, depth)
                    break
            normalised = self._definitions.get(name, {})
        return normalised

    def _combine(self, parts: list[SchemaPart], depth: int) -> Any:
        values = self._expander.enumerate_values(parts)
        if values is not None:
            return self._as_values(values, parts)
        for index, part in enumerate(parts):
            rest = [*parts[:index], *parts[index + 1 :]]
            if part.schema.get("nullable") is True and "type" in part.schema:
                return self._nullable(part, rest, depth)
            if any(word in part.schema for word in _CONDITIONS):
                return self._conditions(part, rest, depth)
        for index, part in enumerate(parts):
            for word in ("anyOf", "oneOf"):
                if word in part.schema:
                    rest = [*parts[:index], part.without(word), *parts[index + 1 :]]
                    return self._unions.normalise_union(part, word, rest, depth)
        return self._leaves(parts, depth)

    def _nullable(self, part: SchemaPart, rest: list[SchemaPart], depth: int) -> Any:
        """OpenAPI 3.0's way to allow null in addition to a type."""
        named = part.schema["type"]
        types = [*(named if isinstance(named, list) else [named]), "null"]
        wider = part.made({**part.without("nullable").schema, "type": list(dict.fromkeys(types))}, "nullable")
        return self._combine([wider, *rest], depth)

    def _as_values(self, values: list[Any], parts: Sequence[SchemaPart]) -> Any:
        if not values:
            return False
        if not all(map(is_writable, values)):
            path, word = next((p.path, w) for p in parts for w in ("const", "enum") if w in p.schema)
            self._errors.refuse(path, word, "has an integer beyond 64 bits, or is nested too deep")
            return True
        return {"const": values[0]} if len(values) == 1 else {"enum": values}

    def _conditions(self, part: SchemaPart, rest: list[SchemaPart], depth: int) -> Any:
        """`not`, `if` and dependent properties, as alternatives beside all other words."""
        bare = part.without(*_CONDITIONS)
        found: list[SchemaPart] = [bare, *rest]
        try:
            for number, (word, branches) in enumerate(alternatives(part.schema)):
                what = f"{word}{number}"
                if len(branches) == 1:
                    found.append(part.made(branches[0], what))
                else:
                    found.append(part.made({"anyOf": branches} if branches else False, what))
        except CannotNegate as error:
            word = next(word for word in _CONDITIONS if word in part.schema)
            self._errors.refuse(part.path, word, f"with {error} in it is not supported")
        return self._combine_again(found, depth)

    def _combine_again(self, parts: Sequence[SchemaPart], depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise InvalidRequest(
                f"{parts[0].path:.200}: more than {MAX_DEPTH} conditions.", param=parts[0].path
            )
        expanded = self._expander.expand(parts)
        if any(part.schema is False for part in expanded):
            return False
        expanded = [part for part in expanded if not part.is_empty]
        return self._combine(expanded, depth + 1) if expanded else True

    def _leaves(self, parts: list[SchemaPart], depth: int) -> Any:
        types: frozenset[str] | None = None
        for part in parts:
            if "type" in part.schema:
                types = common_types(types, self._types(part))
        is_implied = types is None
        types = implied_types(parts) if types is None else types
        if types is None:
            if any(NOT_VALUES in part.schema for part in parts):
                self._errors.refuse(parts[0].path, "not", "needs a type beside it")
            return True
        kinds = [name for name in TYPES if name in types and not (name == "integer" and "number" in types)]
        found = [self._leaf(kind, parts, depth) for kind in kinds]
        implied = {IMPLIED: True} if is_implied else {}
        left = merged([leaf | implied for leaf in found if leaf is not None])
        if not left:
            return False
        if len(left) > 1 and all(leaf.keys() == {"type"} for leaf in left):
            return {"type": [leaf["type"] for leaf in left]}
        return left[0] if len(left) == 1 else {"anyOf": left}

    def _types(self, part: SchemaPart) -> frozenset[str] | None:
        named = part.schema["type"]
        names = named if isinstance(named, list) else [named]
        found = {name.lower() for name in names if isinstance(name, str)}
        wrong = [name for name in names if not isinstance(name, str) or name.lower() not in TYPES]
        if wrong:
            known = ", ".join(TYPES)
            self._errors.malformed(
                part.path, "type", f"{wrong[0]!r:.40} is not a JSON type; those are {known}"
            )
            return None
        if not names:
            self._errors.malformed(part.path, "type", "must name a type")
            return None
        return frozenset(found)

    def _leaf(self, kind: str, parts: list[SchemaPart], depth: int) -> dict[str, Any] | None:
        """The schema for one type; None if no value of that type is possible."""
        words = ASSERTIONS.get("number" if kind == "integer" else kind, ())
        own = [part for part in parts if part.schema.keys() & {*words, NOT_PATTERN, NOT_VALUES}]
        excluded = [value for part in own for value in part.schema.get(NOT_VALUES, ())]

        def normalise(inner: Sequence[SchemaPart]) -> Any:
            return self._normalise(inner, depth + 1)

        if kind in _SIMPLE:
            return self._simple(kind, excluded)
        if kind == "string":
            text = read_text(own, self._errors)
            if text is None:
                return None
            is_said = text.wanted or text.unwanted or text.length or text.format
            return {TEXT: text} if is_said else {"type": "string"}
        if any(_is_of(kind, value) for value in excluded):
            self._errors.refuse(own[0].path, "not", f"with a value of type {kind!r} is not supported")
        if kind in ("integer", "number"):
            return normalise_numbers(kind, own, self._errors) if own else {"type": kind}
        own = [part for part in own if part.schema.keys() & set(words)]
        if not own:
            return {"type": kind}
        if kind == "array":
            return normalise_arrays(own, normalise, self._expander.enumerate_values, self._errors)
        return normalise_objects(own, normalise, self._expander.enumerate_values, self._errors)

    def _simple(self, kind: str, excluded: Sequence[Any]) -> dict[str, Any] | None:
        values: Sequence[Any] = [None] if kind == "null" else [False, True]
        left = [value for value in values if not _is_among(value, excluded)]
        if len(left) == len(values):
            return {"type": kind}
        return {"const": left[0]} if left else None


def _is_among(value: Any, others: Sequence[Any]) -> bool:
    return any(are_equal(value, other) for other in others)


def _is_of(kind: str, value: Any) -> bool:
    kinds: dict[str, Callable[[Any], bool]] = {
        "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        "array": lambda v: isinstance(v, list),
        "object": lambda v: isinstance(v, dict),
    }
    return kinds[kind](value)
