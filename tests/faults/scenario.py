"""Cases that belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.environment import Harbour
from tests.faults.journal import Ledger


@dataclass(frozen=True, slots=True)
class Scene:
    """A case passes when it raises nothing and all is as before; its name is what it is about.

    `cases` share one Berth, so that what one of them leaks is still there for the next. Those `alone` bring
    their own, and get a folder that isn't there yet, the ledger and the seed.
    """

    name: str
    cases: Sequence[Callable[[Harbour], None]] = ()
    alone: Sequence[Callable[[Path, Ledger, int], None]] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
