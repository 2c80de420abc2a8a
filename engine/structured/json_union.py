"""One of several schemas: `anyOf`, and `oneOf` as far as its branches can be kept apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from engine.errors import InvalidRequest
from engine.structured.json_branches import listed_values, overlapping
from engine.structured.json_negation import CannotNegate, negation
from engine.structured.json_expand import Opener
from engine.structured.json_parts import Complaints, Part, distinct, mapping
from engine.structured.json_references import references_of

_MAX_NEGATED = 32  # alternatives that keep two branches of a oneOf apart


class Follow(Protocol):
    def __call__(self, parts: Sequence[Part], depth: int) -> Any:
        """What several schemas become together; False where no value satisfies them."""


class Unions:
    """Of one schema. `target`: what a followed schema refers to."""

    def __init__(
        self, opener: Opener, complaints: Complaints, follow: Follow, target: Callable[[Any], Any]
    ) -> None:
        self._opener = opener
        self._complaints = complaints
        self._follow = follow
        self._target = target

    def follow_any(self, part: Part, word: str, rest: list[Part], depth: int) -> Any:
        branches = self._opener.branches(part, word)
        if not branches:
            return self._follow(rest, depth + 1)
        rest = [one for one in rest if not one.is_empty]
        known = mapping(part.schema, "discriminator")
        followed = [self._branch(branch, rest, known, depth) for branch in branches]
        kept = [(branch, one) for branch, one in zip(branches, followed, strict=True) if one is not False]
        if word == "oneOf" and len(kept) > 1:
            kept = self._keep_apart(part, kept, rest, depth)
        left = merged([one for _, one in kept])
        if not left:
            return False
        if True in left:
            return True
        return left[0] if len(left) == 1 else {"anyOf": left}

    def _branch(self, branch: Part, rest: list[Part], known: Any, depth: int) -> Any:
        name = known.get("propertyName")
        if isinstance(name, str):
            tagged = branch.made({"required": [name], "properties": {name: self._tag(branch, known)}}, "tag")
            followed = self._follow([*rest, branch, tagged], depth + 1)
            if followed is not False:
                return followed
        return self._follow([*rest, branch], depth + 1)

    def _tag(self, branch: Part, known: Any) -> Any:
        """What a discriminator says of the property that tells this branch from others."""
        name = known["propertyName"]
        own = [
            one.child("properties", name) for one in self._opener.open([branch]) if name in _properties(one)
        ]
        words = references_of(branch.schema) if isinstance(branch.schema, dict) else []
        if (own and self._opener.enumerate_values(own) is not None) or not words:
            return True
        target = self._opener.resolve(branch, words[0])
        schema_name = target.path.rpartition(".")[2]
        names = [
            value
            for value, reference in mapping(known, "mapping").items()
            if isinstance(reference, str) and reference.replace("~1", "/").rpartition("/")[2] == schema_name
        ]
        return {"enum": names or [schema_name]}

    def _keep_apart(
        self, part: Part, kept: list[tuple[Part, Any]], rest: list[Part], depth: int
    ) -> list[tuple[Part, Any]]:
        """What is one branch of a oneOf must be no other; told apart by what they say, or by `not`."""
        doubtful = overlapping([one for _, one in kept], self._target)
        apart = list(kept)
        for index in sorted({one for pair in doubtful for one in pair}):
            others = [kept[a + b - index][0] for a, b in doubtful if index in (a, b)]
            branch = kept[index][0]
            alone = self._without(branch, others, rest, depth)
            if alone is False:
                self._complaints.refuse(
                    part.path,
                    "oneOf",
                    "has branches that one value could satisfy together; use anyOf, or give each branch "
                    "a type of its own or a required property with its own const",
                )
                return kept
            apart[index] = (branch, alone)
        return apart

    def _without(self, branch: Part, others: Sequence[Part], rest: list[Part], depth: int) -> Any:
        """The branch where none of the others holds; False if that is never so, or can't be said."""
        excluded = []
        try:
            for number, other in enumerate(others):
                nots = [one for opened in self._opener.open([other]) for one in negation(opened.schema)]
                if not 0 < len(nots) <= _MAX_NEGATED:
                    return False
                excluded.append(branch.made({"anyOf": nots}, f"not{number}:{other.key}"))
            return self._follow([*rest, branch, *excluded], depth + 1)
        except (CannotNegate, InvalidRequest):
            return False


def _properties(part: Part) -> Any:
    return mapping(part.schema, "properties") if isinstance(part.schema, dict) else {}


def merged(branches: Sequence[Any]) -> list[Any]:
    """Each once, and the values that they list as one of them."""
    values: list[Any] = []
    left: list[Any] = []
    for branch in branches:
        listed = listed_values(branch)
        if listed is None:
            left.append(branch)
        else:
            if not values:
                left.append(None)  # its place
            values += listed
    values = distinct(values)
    listed_now = {"const": values[0]} if len(values) == 1 else {"enum": values}
    found = [listed_now if branch is None else branch for branch in left]
    return [branch for index, branch in enumerate(found) if branch not in found[:index]]
