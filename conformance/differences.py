"""Where we mean to differ from vLLM, and why: each a pattern of case names that vLLM doesn't pass."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Difference:
    cases: str  # a pattern as of file names; [ and ] stand for themselves
    ours: str
    theirs: str
    reason: str

    def covers(self, name: str) -> bool:
        return fnmatchcase(_plain(name), _plain(self.cases))


def _plain(name: str) -> str:
    return name.replace("[", "(").replace("]", ")")


VLLM: tuple[Difference, ...] = ()

_BY_OWNER: dict[str, tuple[Difference, ...]] = {"vllm": VLLM}


def intended_differences(owner: str) -> tuple[Difference, ...]:
    """Those of a server whose models are `owned_by` this owner."""
    return _BY_OWNER.get(owner, ())
