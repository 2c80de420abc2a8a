"""The measurements of one attack, and their limits. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_OVER_S = 0.25  # by which a victim's longest gap may exceed its undisturbed one
MOST_OF_BODY = 1.5  # memory of Berth and of the engine, each relative to the body, plus:
SLACK_BYTES = 96 << 20  # for any request, and for memory kept by allocators
NOISE_S = 2.0  # may be noise of the machine: an attack over the limit by less is tried again


@dataclass(slots=True)
class Measurement:
    """The measurements of one attempt, in seconds and bytes."""

    undisturbed_s: float = 0.0  # the victim's longest gap before the attack
    gap_s: float = 0.0  # and during the attack
    took_s: float = 0.0
    body_bytes: int = 0
    work_bytes: int = 0  # additional memory allowed for this kind of work by docs/limits.md
    berth_bytes: int = 0  # peak growth of memory
    engine_bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # what the attacker got
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # violations other than the gap and memory

    @property
    def over_s(self) -> float:
        return max(0.0, self.gap_s - self.undisturbed_s)

    @property
    def memory_bytes(self) -> int:
        return max(self.berth_bytes, self.engine_bytes)

    @property
    def most_bytes(self) -> int:
        return int(MOST_OF_BODY * self.body_bytes) + SLACK_BYTES + self.work_bytes


def faults(measurement: Measurement) -> list[str]:
    """Violations, one line each; empty = the attack failed."""
    found = list(measurement.problems)
    if measurement.over_s > MOST_OVER_S:
        found.append(f"the victim stalled for {measurement.over_s:.2f} s longer than before")
    if measurement.memory_bytes > measurement.most_bytes:
        grown, allowed = measurement.memory_bytes >> 20, measurement.most_bytes >> 20
        found.append(f"memory grew by {grown} MiB, {allowed} MiB are allowed")
    return found


def may_be_noise(measurement: Measurement) -> bool:
    """Whether to try again: other work on the machine lengthens a gap, and never shortens it."""
    return (
        not measurement.problems
        and MOST_OVER_S < measurement.over_s < NOISE_S
        and measurement.memory_bytes <= measurement.most_bytes
    )


def calmest(attempts: Sequence[Measurement]) -> Measurement:
    """The attempt that counts: one without problems if possible, with the shortest gap."""
    return min(attempts, key=lambda measurement: (bool(measurement.problems), measurement.over_s))
