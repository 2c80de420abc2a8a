"""Normalises the words of a JSON schema about arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.structured.json_parts import MAX_COUNT, SchemaErrors, SchemaPart
from engine.structured.json_texts import read_count

_MAX_LISTED = 512  # arrays with unique items, which are listed

Normalise = Callable[[Sequence[SchemaPart]], Any]
"""Several schemas combined into one; False if no value satisfies them."""
Enumerate = Callable[[Sequence[SchemaPart]], Sequence[Any] | None]
"""The values that several schemas list; None if they list none."""


def normalise_arrays(
    parts: Sequence[SchemaPart], normalise: Normalise, enumerate_values: Enumerate, errors: SchemaErrors
) -> dict[str, Any] | None:
    """None if no array is possible."""
    counts = [read_count(part, "maxItems", MAX_COUNT, errors) for part in parts if "maxItems" in part.schema]
    most = min(counts, default=None)
    firsts, rest, least = _first_and_rest(parts, errors)
    normalised = [normalise(first) for first in firsts]
    if False in normalised:  # no item is possible there, nor after it
        firsts, normalised = firsts[: normalised.index(False)], normalised[: normalised.index(False)]
        most = min(len(normalised), most if most is not None else len(normalised))
    after = normalise(rest)
    if after is False:
        most = min(len(normalised), most if most is not None else len(normalised))
    if most is not None and least > most:
        return None
    schema: dict[str, Any] = {"type": "array"}
    if normalised and most != 0:
        schema["prefixItems"] = [{} if item is True else item for item in normalised[:most]]
    if most is None or most > len(normalised):
        schema["items"] = {} if after is True else after
    elif not normalised or most == 0:
        return {"const": []}
    else:
        schema["items"] = False
    schema |= {"minItems": least} if least else {}
    schema |= {} if most is None else {"maxItems": most}
    if any(part.schema.get("uniqueItems") for part in parts) and most != 1:
        values = None if normalised else _few_values(rest, after, enumerate_values)
        return _unique(parts, schema, values, errors)
    return schema


def _first_and_rest(
    parts: Sequence[SchemaPart], errors: SchemaErrors
) -> tuple[list[list[SchemaPart]], list[SchemaPart], int]:
    """The schemas at each of the first positions, those after them, and the minimum number of items."""
    least = max((read_count(part, "minItems", 0, errors) for part in parts), default=0)
    lists = [list(_places(part)) for part in parts]
    rests = [_rest(part) for part in parts]
    wanted = [(part, _num_contained(part, errors)) for part in parts if "contains" in part.schema]
    count = max((len(places) for places in lists), default=0)
    firsts = [
        [part for places, rest in zip(lists, rests, strict=True) for part in (places[at : at + 1] or rest)]
        for at in range(count)
    ]
    rest = [part for parts_after in rests for part in parts_after]
    if len(wanted) > 1:
        errors.refuse(wanted[1][0].path, "contains", "beside another contains is not supported")
    for part, number in wanted[:1]:  # its first items satisfy `contains`
        least = max(least, number)
        firsts += [list(rest) for _ in range(number - len(firsts))]
        firsts = [[*one, part.child("contains")] if at < number else one for at, one in enumerate(firsts)]
        if "maxContains" in part.schema:
            errors.refuse(part.path, "maxContains", "is not supported")
    return firsts, rest, least


def _num_contained(part: SchemaPart, errors: SchemaErrors) -> int:
    number = read_count(part, "minContains", 1, errors)
    if number > _MAX_LISTED:
        errors.refuse(part.path, "minContains", f"is supported up to {_MAX_LISTED}")
        return 0
    return number


def _places(part: SchemaPart) -> Iterator[SchemaPart]:
    for word in ("prefixItems", "items"):
        value = part.schema.get(word)
        if isinstance(value, list):
            yield from (part.child(word, index) for index in range(len(value)))


def _rest(part: SchemaPart) -> list[SchemaPart]:
    """A list in `items` is the spelling of `prefixItems` in drafts before 2020."""
    if isinstance(part.schema.get("items"), list):
        words = ["additionalItems"]
    else:
        words = ["items"] if "items" in part.schema else ["unevaluatedItems"]
    return [part.child(word) for word in words if word in part.schema]


def _few_values(rest: Sequence[SchemaPart], after: Any, enumerate_values: Enumerate) -> Sequence[Any] | None:
    return [False, True] if after == {"type": "boolean"} else enumerate_values(rest)


def _unique(
    parts: Sequence[SchemaPart], schema: dict[str, Any], values: Sequence[Any] | None, errors: SchemaErrors
) -> dict[str, Any]:
    """Enumerates arrays of few values; if there are too many, only those in the order of the list."""
    if values is not None:
        sizes = range(schema.get("minItems", 0), min(schema.get("maxItems", len(values)), len(values)) + 1)
        for choose in (itertools.permutations, itertools.combinations):
            found = (list(chosen) for size in sizes for chosen in choose(values, size))
            arrays = list(itertools.islice(found, _MAX_LISTED + 1))
            if 0 < len(arrays) <= _MAX_LISTED:
                return {"enum": arrays}
    part = next(part for part in parts if part.schema.get("uniqueItems"))
    errors.refuse(
        part.path,
        "uniqueItems",
        "is supported for a few listed values (enum) only; leave it out, and check the answer",
    )
    return schema
