"""One of several schemas: `anyOf`, and `oneOf` if its branches can be made exclusive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from engine.errors import InvalidRequest
from engine.structured.json_branches import listed_values, overlapping
from engine.structured.json_expand import SchemaExpander
from engine.structured.json_negation import CannotNegate, negation
from engine.structured.json_parts import SchemaErrors, SchemaPart, distinct, mapping
from engine.structured.json_references import references_of

_MAX_NEGATED = 32  # alternatives that separate two branches of a oneOf


class Normalise(Protocol):
    def __call__(self, parts: Sequence[SchemaPart], depth: int) -> Any:
        """Several schemas combined into one; False if no value satisfies them."""


class Unions:
    """For one schema. `target`: the schema that a normalised schema refers to."""

    def __init__(
        self,
        expander: SchemaExpander,
        errors: SchemaErrors,
        normalise: Normalise,
        target: Callable[[Any], Any],
    ) -> None:
        self._expander = expander
        self._errors = errors
        self._normalise = normalise
        self._target = target

    def normalise_union(self, part: SchemaPart, word: str, rest: list[SchemaPart], depth: int) -> Any:
        branches = self._expander.branches(part, word)
        if not branches:
            return self._normalise(rest, depth + 1)
        rest = [other for other in rest if not other.is_empty]
        known = mapping(part.schema, "discriminator")
        normalised = [self._branch(branch, rest, known, depth) for branch in branches]
        kept = [(branch, one) for branch, one in zip(branches, normalised, strict=True) if one is not False]
        if word == "oneOf" and len(kept) > 1:
            kept = self._keep_apart(part, kept, rest, depth)
        left = merged([one for _, one in kept])
        if not left:
            return False
        if True in left:
            return True
        return left[0] if len(left) == 1 else {"anyOf": left}

    def _branch(self, branch: SchemaPart, rest: list[SchemaPart], known: Any, depth: int) -> Any:
        name = known.get("propertyName")
        if isinstance(name, str):
            tagged = branch.made({"required": [name], "properties": {name: self._tag(branch, known)}}, "tag")
            normalised = self._normalise([*rest, branch, tagged], depth + 1)
            if normalised is not False:
                return normalised
        return self._normalise([*rest, branch], depth + 1)

    def _tag(self, branch: SchemaPart, known: Any) -> Any:
        """A discriminator's schema for the property that identifies this branch."""
        name = known["propertyName"]
        own = [
            expanded.child("properties", name)
            for expanded in self._expander.expand([branch])
            if name in _properties(expanded)
        ]
        words = references_of(branch.schema) if isinstance(branch.schema, dict) else []
        if (own and self._expander.enumerate_values(own) is not None) or not words:
            return True
        target = self._expander.resolve(branch, words[0])
        schema_name = target.path.rpartition(".")[2]
        names = [
            value
            for value, reference in mapping(known, "mapping").items()
            if isinstance(reference, str) and reference.replace("~1", "/").rpartition("/")[2] == schema_name
        ]
        return {"enum": names or [schema_name]}

    def _keep_apart(
        self, part: SchemaPart, kept: list[tuple[SchemaPart, Any]], rest: list[SchemaPart], depth: int
    ) -> list[tuple[SchemaPart, Any]]:
        """Makes the branches of a oneOf exclusive, by their own words, or with `not`."""
        doubtful = overlapping([one for _, one in kept], self._target)
        apart = list(kept)
        for index in sorted({position for pair in doubtful for position in pair}):
            others = [kept[a + b - index][0] for a, b in doubtful if index in (a, b)]
            branch = kept[index][0]
            alone = self._without(branch, others, rest, depth)
            if alone is False:
                self._errors.refuse(
                    part.path,
                    "oneOf",
                    "has branches that one value could satisfy together; use anyOf, or give each branch "
                    "a type of its own or a required property with its own const",
                )
                return kept
            apart[index] = (branch, alone)
        return apart

    def _without(
        self, branch: SchemaPart, others: Sequence[SchemaPart], rest: list[SchemaPart], depth: int
    ) -> Any:
        """The branch where no other holds; False if that never happens, or can't be expressed."""
        excluded = []
        try:
            for number, other in enumerate(others):
                nots = [
                    negated
                    for expanded in self._expander.expand([other])
                    for negated in negation(expanded.schema)
                ]
                if not 0 < len(nots) <= _MAX_NEGATED:
                    return False
                excluded.append(branch.made({"anyOf": nots}, f"not{number}:{other.key}"))
            return self._normalise([*rest, branch, *excluded], depth + 1)
        except (CannotNegate, InvalidRequest):
            return False


def _properties(part: SchemaPart) -> Any:
    return mapping(part.schema, "properties") if isinstance(part.schema, dict) else {}


def merged(branches: Sequence[Any]) -> list[Any]:
    """The distinct branches, with the values that they list merged into one branch."""
    values: list[Any] = []
    left: list[Any] = []
    for branch in branches:
        listed = listed_values(branch)
        if listed is None:
            left.append(branch)
        else:
            if not values:
                left.append(None)  # a placeholder for the merged branch
            values += listed
    values = distinct(values)
    listed_now = {"const": values[0]} if len(values) == 1 else {"enum": values}
    found = [listed_now if branch is None else branch for branch in left]
    return [branch for index, branch in enumerate(found) if branch not in found[:index]]
