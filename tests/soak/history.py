"""What was done to Berth, its engines and its store, and when: what may have a victim, and which."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto


class Harm(Enum):
    """Whose requests may fail of it."""

    NONE = auto()  # nobody's: Berth has to see to that
    ENGINE = auto()  # those of one model
    KILL = auto()  # everybody's, from Berth's death until the next one serves
    END = auto()  # those of new requests, until the next Berth serves; what had begun is answered to its end
    STORE = auto()  # nobody's, but an operator may be told to come again


@dataclass(slots=True)
class Fault:
    """One of them. Times are monotonic seconds; `model`: None where it isn't known which was hit."""

    kind: str
    harm: Harm
    model: str | None
    began: float
    ended: float = math.inf


class History:
    """Written by those who do it, read when all is over. `problems`: what has gone wrong by itself."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.problems: list[str] = []

    @contextmanager
    def during(self, kind: str, harm: Harm = Harm.NONE, model: str | None = None) -> Iterator[Fault]:
        """It goes on as long as the block."""
        fault = Fault(kind, harm, model, time.monotonic())
        self.faults.append(fault)
        try:
            yield fault
        finally:
            fault.ended = time.monotonic()

    def is_berth_away(self, began: float, ended: float, after_s: float = 0.0) -> bool:
        """Whether for a part of this time no Berth served, or the one that did was ending."""
        return any(self.has(harm, began, ended, after_s=after_s) for harm in (Harm.KILL, Harm.END))

    @property
    def counts(self) -> Counter[str]:
        return Counter(fault.kind for fault in self.faults)

    def has(
        self, harm: Harm, began: float, ended: float, *, after_s: float = 0.0, model: str | None = None
    ) -> bool:
        """Whether such a thing was going on between these times, or had ended at most `after_s` before."""
        return any(
            fault.harm is harm
            and (model is None or fault.model in (None, model))
            and fault.began <= ended
            and fault.ended + after_s >= began
            for fault in self.faults
        )
