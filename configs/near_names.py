"""Names that are nearly those of settings: what somebody who typed them will have meant. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_SHORTEST = 5  # characters; of shorter names everything is near
_LONG = 10  # from here on, two slips still tell what was meant


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that differs by one slip (two in long names), or in the order of its words."""
    words = sorted(name.split("_"))
    best: tuple[int, str] | None = None
    for other in known:
        if sorted(other.split("_")) == words:
            return other
        limit = 2 if min(len(name), len(other)) >= _LONG else 1
        if min(len(name), len(other)) < _SHORTEST or _at_least(name, other) > limit:
            continue
        slips = count_slips(name, other)
        if slips <= limit and (best is None or slips < best[0]):
            best = (slips, other)
    return None if best is None else best[1]


def count_slips(one: str, other: str) -> int:
    """Letters added, left out, changed or swapped with their neighbour that make one word the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        earlier, before, row = before, row, [i]
        for j, wanted in enumerate(other, start=1):
            slips = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                slips = min(slips, earlier[j - 2] + 1)
            row.append(slips)
    return row[-1]


def _at_least(one: str, other: str) -> int:
    """A lower bound of the slips, by letters alone."""
    if abs(len(one) - len(other)) > 2:
        return 3
    mine, theirs = Counter(one), Counter(other)
    return max((mine - theirs).total(), (theirs - mine).total())
