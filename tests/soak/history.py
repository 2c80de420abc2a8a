"""The faults injected into Berth, its engines and its store, with their times and possible victims."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto


class Impact(Enum):
    """Whose requests may fail because of a fault."""

    NONE = auto()  # none
    ENGINE = auto()  # those to one model
    KILL = auto()  # all, from the kill until the next Berth serves
    END = auto()  # new ones, until the next Berth serves; running ones are completed
    STORE = auto()  # none, but operators may have to retry


@dataclass(slots=True)
class Fault:
    """One fault. Times in monotonic seconds; `model` is None if it is unknown which one was hit."""

    kind: str
    impact: Impact
    model: str | None
    began: float
    ended: float = math.inf


class History:
    """Written during the storm, read afterwards. `problems`: failures without a fault."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.problems: list[str] = []

    @contextmanager
    def during(self, kind: str, impact: Impact = Impact.NONE, model: str | None = None) -> Iterator[Fault]:
        """The fault lasts as long as the block."""
        fault = Fault(kind, impact, model, time.monotonic())
        self.faults.append(fault)
        try:
            yield fault
        finally:
            fault.ended = time.monotonic()

    def is_berth_away(self, began: float, ended: float, after_s: float = 0.0) -> bool:
        """Whether no Berth served for a part of this time, or Berth was ending."""
        return any(self.has(impact, began, ended, after_s=after_s) for impact in (Impact.KILL, Impact.END))

    @property
    def counts(self) -> Counter[str]:
        return Counter(fault.kind for fault in self.faults)

    def has(
        self, impact: Impact, began: float, ended: float, *, after_s: float = 0.0, model: str | None = None
    ) -> bool:
        """Whether such a fault overlaps these times, or ended at most `after_s` before."""
        return any(
            fault.impact is impact
            and (model is None or fault.model in (None, model))
            and fault.began <= ended
            and fault.ended + after_s >= began
            for fault in self.faults
        )
