"""When an idle instance expires. Pure: times are monotonic seconds, handed in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Idleness:
    """What expiry needs to know of one running instance."""

    timeout_s: float  # 0 = never
    pinned: bool
    in_flight: int
    last_active: float  # when it became ready or the last lease was taken or released


def expires_at(idleness: Idleness) -> float | None:
    """When the instance expires if nothing is asked of it; None = not at all, or not while it is in use."""
    if idleness.timeout_s <= 0 or idleness.pinned or idleness.in_flight:
        return None
    return idleness.last_active + idleness.timeout_s


def is_expired(idleness: Idleness, now: float) -> bool:
    """Whether the instance has been idle for its whole time-out."""
    deadline = expires_at(idleness)
    return deadline is not None and deadline <= now


def next_check_at(instances: Iterable[Idleness], now: float) -> float | None:
    """The earliest time at which any of these can be expired; None = none of them ever can.

    An instance in use can't expire before `now + timeout_s`, whenever its last lease ends. Looking again
    then spares the release of a lease from waking anyone.
    """
    deadlines = [
        now + idleness.timeout_s if idleness.in_flight else idleness.last_active + idleness.timeout_s
        for idleness in instances
        if idleness.timeout_s > 0 and not idleness.pinned
    ]
    return min(deadlines, default=None)
