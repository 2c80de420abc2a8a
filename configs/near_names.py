"""Finds the setting that a misspelt name probably means. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_SHORTEST = 5  # characters; any two shorter names are similar
_LONG = 10  # from this length on, two typos still leave the meaning clear


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that differs by one typo (two in long names), or in the order of its words."""
    words = sorted(name.split("_"))
    best: tuple[int, str] | None = None
    for other in known:
        if sorted(other.split("_")) == words:
            return other
        limit = 2 if min(len(name), len(other)) >= _LONG else 1
        if min(len(name), len(other)) < _SHORTEST or _min_typos(name, other) > limit:
            continue
        typos = count_typos(name, other)
        if typos <= limit and (best is None or typos < best[0]):
            best = (typos, other)
    return None if best is None else best[1]


def count_typos(one: str, other: str) -> int:
    """The number of letters added, omitted, changed or swapped with the next between two words."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        earlier, before, row = before, row, [i]
        for j, wanted in enumerate(other, start=1):
            typos = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                typos = min(typos, earlier[j - 2] + 1)
            row.append(typos)
    return row[-1]


def _min_typos(one: str, other: str) -> int:
    """A lower bound, from the letters alone."""
    if abs(len(one) - len(other)) > 2:
        return 3
    mine, theirs = Counter(one), Counter(other)
    return max((mine - theirs).total(), (theirs - mine).total())
