"""What was measured of one attack, and whether that may be. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_OVER_S = 0.25  # of a victim's longest gap, above its undisturbed one
MOST_OF_BODY = 1.5  # of memory, in Berth and in the engine each, and beside it:
SLACK_BYTES = 96 << 20  # that any request may take, and what allocators keep
NOISE_S = 2.0  # so much can be the machine's: an attack that is over by less is tried again


@dataclass(slots=True)
class Seen:
    """Of one attempt. Seconds and bytes."""

    undisturbed_s: float = 0.0  # the victim's longest gap before
    gap_s: float = 0.0  # and during it
    took_s: float = 0.0
    body_bytes: int = 0
    work_bytes: int = 0  # that work of this kind may take beside it, as docs/limits.md says
    berth_bytes: int = 0  # what their memory grew by, at its peak
    engine_bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # what the attacker got
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what isn't as promised, other than the gap and memory

    @property
    def over_s(self) -> float:
        return max(0.0, self.gap_s - self.undisturbed_s)

    @property
    def memory_bytes(self) -> int:
        return max(self.berth_bytes, self.engine_bytes)

    @property
    def most_bytes(self) -> int:
        return int(MOST_OF_BODY * self.body_bytes) + SLACK_BYTES + self.work_bytes


def faults(seen: Seen) -> list[str]:
    """Each in one line; empty = the attack came to nothing."""
    found = list(seen.problems)
    if seen.over_s > MOST_OVER_S:
        found.append(f"the victim stood still for {seen.over_s:.2f} s longer than before")
    if seen.memory_bytes > seen.most_bytes:
        found.append(f"memory grew by {seen.memory_bytes >> 20} MiB, {seen.most_bytes >> 20} MiB are allowed")
    return found


def may_be_noise(seen: Seen) -> bool:
    """Whether another attempt could tell more: other work on a machine lengthens a gap, never shortens it."""
    return not seen.problems and MOST_OVER_S < seen.over_s < NOISE_S and seen.memory_bytes <= seen.most_bytes


def calmest(attempts: Sequence[Seen]) -> Seen:
    """The one that counts: without problems, if there is such, and with the shortest gap of those."""
    return min(attempts, key=lambda seen: (bool(seen.problems), seen.over_s))
