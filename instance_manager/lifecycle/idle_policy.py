"""When an idle instance expires. Pure: times are monotonic seconds, handed in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Idleness:
    """What expiry needs to know about one running instance."""

    idle_timeout_s: float  # 0 = never
    pinned: bool
    in_flight: int
    last_active: float  # when it became ready or the last lease was taken or released


def expires_at(idleness: Idleness) -> float | None:
    """When the instance expires if it gets no request; None = never, or not while it is in use."""
    if idleness.idle_timeout_s <= 0 or idleness.pinned or idleness.in_flight:
        return None
    return idleness.last_active + idleness.idle_timeout_s


def is_expired(idleness: Idleness, now: float) -> bool:
    """Whether the instance has been idle for its whole idle timeout."""
    deadline = expires_at(idleness)
    return deadline is not None and deadline <= now


def next_check_at(instances: Iterable[Idleness], now: float) -> float | None:
    """The earliest time at which any of these can expire; None = never.

    An instance in use can't expire before `now + idle_timeout_s`, whenever its last lease ends. Since it is
    checked again then, releasing a lease need not wake the expiry loop.
    """
    deadlines = [
        (now if idleness.in_flight else idleness.last_active) + idleness.idle_timeout_s
        for idleness in instances
        if idleness.idle_timeout_s > 0 and not idleness.pinned
    ]
    return min(deadlines, default=None)
