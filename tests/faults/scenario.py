"""A group of related cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.environment import FaultEnvironment
from tests.faults.journal import Journal


@dataclass(frozen=True, slots=True)
class Scenario:
    """A case passes if it raises nothing and the environment is as before; its name says what it is about.

    `cases` share one Berth, so that a leak of one is seen by the next. `isolated` cases start their own
    Berth; they get a directory that doesn't exist yet, the journal and the seed.
    """

    name: str
    cases: Sequence[Callable[[FaultEnvironment], None]] = ()
    isolated: Sequence[Callable[[Path, Journal, int], None]] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
