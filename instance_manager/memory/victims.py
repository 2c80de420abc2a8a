"""Which instances may have to go, and in which order: for memory, slots, fewer replicas and idle time alike.

Pure: facts and monotonic seconds are passed in. How many victims a need of memory or slots takes, and whether
they sleep or stop, is eviction.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from instance_manager.memory.devices import Device


class EvictionAction(IntEnum):
    """What is done to a victim; the value is its level afterwards."""

    SLEEP1 = 1
    SLEEP2 = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class Resident:
    """An instance with a process, as the policy sees it. Times are monotonic seconds."""

    instance_id: str
    model_name: str
    level: int  # 0 awake (or starting), 1 and 2 asleep
    held: Mapping[Device, int]  # bytes now; of a starting instance, its expected need
    held_asleep: Mapping[int, Mapping[Device, int]]  # level -> bytes; empty: it can't sleep
    in_flight: int
    queued: int
    pinned: bool
    last_used: float
    resident_since: float  # when it last became awake; infinite while it starts or wakes
    leaving: EvictionAction | None = None  # already under way: its memory counts as about to be free
    idle_timeout_s: float = 0.0  # 0 = never

    @property
    def is_busy(self) -> bool:
        return self.in_flight > 0 or self.queued > 0

    @property
    def may_be_chosen(self) -> bool:
        """Whether it can be a victim at all, at some time."""
        return not self.pinned and self.leaving is None

    @property
    def expires_at(self) -> float | None:
        """When it expires if it gets no request; None = never, or not while it is in use."""
        if self.idle_timeout_s <= 0 or self.is_busy or not self.may_be_chosen:
            return None
        return self.last_used + self.idle_timeout_s

    def held_after(self, action: EvictionAction | None) -> Mapping[Device, int]:
        """Bytes that it holds after the action; None = no action."""
        if action is None:
            return self.held
        return {} if action is EvictionAction.STOP else self.held_asleep[action]


@dataclass(frozen=True, slots=True)
class EvictionStep:
    """One victim. With `must_drain` its leases end first; without, it goes only if it is still not in use."""

    instance_id: str
    action: EvictionAction
    must_drain: bool

    def still_applies(self, victim: Resident) -> bool:
        """Whether to execute it on the victim as it is by now; if not, plan again."""
        if not victim.may_be_chosen or _is_starting(victim):
            return False
        return self.must_drain or not victim.is_busy


def may_go(residents: Iterable[Resident], now: float, *, min_residency_s: float = 0.0) -> list[Resident]:
    """In victim order. Never: pinned, leaving or starting instances, and those awake for less than that."""
    chosen = [
        one
        for one in residents
        if one.may_be_chosen and (one.level > 0 or one.resident_since + min_residency_s <= now)
    ]
    return sorted(chosen, key=_victim_order)


def plan_scale_down(replicas: Iterable[Resident], now: float) -> EvictionStep | None:
    """For one replica fewer, although all are in use: the least used is drained."""
    victim = next(iter(may_go(replicas, now)), None)
    if victim is None:
        return None
    return EvictionStep(victim.instance_id, EvictionAction.STOP, must_drain=victim.is_busy)


def expired(residents: Iterable[Resident], now: float) -> list[Resident]:
    """Those that have been idle for their whole idle timeout, in victim order."""
    return [one for one in may_go(residents, now) if (at := one.expires_at) is not None and at <= now]


def next_expiry_check(residents: Iterable[Resident], now: float) -> float | None:
    """The earliest time at which any of these can expire; None = never.

    An instance in use can't expire before `now + idle_timeout_s`, whenever its last lease ends. Since it is
    checked again then, releasing a lease need not wake the expiry loop.
    """
    deadlines = [
        (now if one.is_busy else one.last_used) + one.idle_timeout_s
        for one in residents
        if one.idle_timeout_s > 0 and one.may_be_chosen
    ]
    return min(deadlines, default=None)


def _victim_order(one: Resident) -> tuple[bool, bool, int, float, str]:
    """Idle before busy, asleep before awake, few requests before many, the least recently used first."""
    return one.is_busy, one.level == 0, one.in_flight + one.queued, one.last_used, one.instance_id


def _is_starting(one: Resident) -> bool:
    return math.isinf(one.resident_since)
