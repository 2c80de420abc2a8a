"""A limit on the size of one field of a request body."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class Measure(Enum):
    """What is counted. A value without any of it counts as 0."""

    ENTRIES = "entries"  # of a list or an object
    INPUTS = "inputs"  # entries of a list, unless it is one input's token ids
    CHARS = "characters"  # of all strings in the value, including field names
    VALUES = "values"  # all nested values
    TEXT = "bytes of text"  # of text to be tokenized; counted at that point (model_service.py)


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """`path` is written as clients write it; `[]` stands for each entry of a list. `total` sums over entries.

    Text limits with `total` also sum over fields, since the template turns them into one prompt.
    """

    path: str
    most: int
    measure: Measure = Measure.ENTRIES
    total: bool = False

    @property
    def field(self) -> str:
        """The body's top-level field that the limit applies to."""
        return self.path.partition(".")[0].partition("[")[0]


SizeLimits: TypeAlias = tuple[SizeLimit, ...]
