"""What a JSON schema says of arrays, as the compiler follows it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.structured.json_parts import MAX_COUNT, Complaints, Part
from engine.structured.json_texts import read_count

_MAX_LISTED = 512  # arrays without a repetition, which are listed

Follow = Callable[[Sequence[Part]], Any]
"""What several schemas become together; False where no value satisfies them."""
Enumerate = Callable[[Sequence[Part]], Sequence[Any] | None]
"""The values that schemas list together; None where they list none."""


def follow_arrays(
    parts: Sequence[Part], follow: Follow, enumerate_values: Enumerate, complaints: Complaints
) -> dict[str, Any] | None:
    """None if no array is possible."""
    counts = [
        read_count(part, "maxItems", MAX_COUNT, complaints) for part in parts if "maxItems" in part.schema
    ]
    most = min(counts, default=None)
    firsts, rest, least = _first_and_rest(parts, complaints)
    followed = [follow(one) for one in firsts]
    if False in followed:  # none can stand there, nor behind it
        firsts, followed = firsts[: followed.index(False)], followed[: followed.index(False)]
        most = min(len(followed), most if most is not None else len(followed))
    after = follow(rest)
    if after is False:
        most = min(len(followed), most if most is not None else len(followed))
    if most is not None and least > most:
        return None
    said: dict[str, Any] = {"type": "array"}
    if followed and most != 0:
        said["prefixItems"] = [{} if one is True else one for one in followed[:most]]
    if most is None or most > len(followed):
        said["items"] = {} if after is True else after
    elif not followed or most == 0:
        return {"const": []}
    else:
        said["items"] = False
    said |= {"minItems": least} if least else {}
    said |= {} if most is None else {"maxItems": most}
    if any(part.schema.get("uniqueItems") for part in parts) and most != 1:
        values = None if followed else _few_values(rest, after, enumerate_values)
        return _unique(parts, said, values, complaints)
    return said


def _first_and_rest(
    parts: Sequence[Part], complaints: Complaints
) -> tuple[list[list[Part]], list[Part], int]:
    """The schemas at each of the first places, those behind them, and how many items there are at least."""
    least = max((read_count(part, "minItems", 0, complaints) for part in parts), default=0)
    lists = [list(_places(part)) for part in parts]
    rests = [_rest(part) for part in parts]
    wanted = [(part, _num_contained(part, complaints)) for part in parts if "contains" in part.schema]
    count = max((len(one) for one in lists), default=0)
    firsts = [
        [one for places, rest in zip(lists, rests, strict=True) for one in (places[at : at + 1] or rest)]
        for at in range(count)
    ]
    rest = [one for more in rests for one in more]
    if len(wanted) > 1:
        complaints.refuse(wanted[1][0].path, "contains", "beside another one is not supported")
    for part, number in wanted[:1]:  # the first ones are what it contains
        least = max(least, number)
        firsts += [list(rest) for _ in range(number - len(firsts))]
        firsts = [[*one, part.child("contains")] if at < number else one for at, one in enumerate(firsts)]
        if "maxContains" in part.schema:
            complaints.refuse(part.path, "maxContains", "is not supported")
    return firsts, rest, least


def _num_contained(part: Part, complaints: Complaints) -> int:
    number = read_count(part, "minContains", 1, complaints)
    if number > _MAX_LISTED:
        complaints.refuse(part.path, "minContains", f"is supported up to {_MAX_LISTED}")
        return 0
    return number


def _places(part: Part) -> Iterator[Part]:
    for word in ("prefixItems", "items"):
        value = part.schema.get(word)
        if isinstance(value, list):
            yield from (part.child(word, index) for index in range(len(value)))


def _rest(part: Part) -> list[Part]:
    """`items` as a list is how the drafts before 2020 say `prefixItems`."""
    if isinstance(part.schema.get("items"), list):
        words = ["additionalItems"]
    else:
        words = ["items"] if "items" in part.schema else ["unevaluatedItems"]
    return [part.child(word) for word in words if word in part.schema]


def _few_values(rest: Sequence[Part], after: Any, enumerate_values: Enumerate) -> Sequence[Any] | None:
    return [False, True] if after == {"type": "boolean"} else enumerate_values(rest)


def _unique(
    parts: Sequence[Part], said: dict[str, Any], values: Sequence[Any] | None, complaints: Complaints
) -> dict[str, Any]:
    """Arrays of few values are written out; if all are too many, those in the order of the list."""
    if values is not None:
        sizes = range(said.get("minItems", 0), min(said.get("maxItems", len(values)), len(values)) + 1)
        for choose in (itertools.permutations, itertools.combinations):
            found = (list(one) for size in sizes for one in choose(values, size))
            arrays = list(itertools.islice(found, _MAX_LISTED + 1))
            if 0 < len(arrays) <= _MAX_LISTED:
                return {"enum": arrays}
    part = next(part for part in parts if part.schema.get("uniqueItems"))
    complaints.refuse(
        part.path,
        "uniqueItems",
        "is supported for a few listed values (enum) only; leave it out, and check the answer",
    )
    return said
