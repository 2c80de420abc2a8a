"""Which instances to put to sleep or to stop so that a model fits.

Pure: bytes and monotonic seconds are passed in; nothing is measured or stopped here. Knows nothing of how a
sleep or a stop is done. Instance slots count as one more device, of which each process holds one. victims.py
says which instances may go, and in which order; here is how many, and whether they sleep or stop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from instance_manager.memory.devices import HOST, SLOT, Device
from instance_manager.memory.victims import EvictionAction, EvictionStep, Resident, may_go


@dataclass(frozen=True, slots=True)
class EvictionPolicy:
    """Instances stay awake for `min_residency_s`. After `max_wait_s`, a waiting model may evict busy ones."""

    min_residency_s: float = 10.0
    max_wait_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Fits:
    """It fits now."""


@dataclass(frozen=True, slots=True)
class Evict:
    """Execute in this order: earlier steps free memory that later ones need. Then plan again."""

    steps: tuple[EvictionStep, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Plan again at `until`, or when a lease or a stop ends; None = only then."""

    until: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class NeverFits:
    """Waiting won't help; the message names what holds the memory."""

    message: str


CapacityPlan = Fits | Evict | Wait | NeverFits


def plan_capacity(
    need: Mapping[Device, int],
    model_name: str,
    waiting_since: float,
    residents: Iterable[Resident],
    budgets: Mapping[Device, int],
    now: float,
    policy: EvictionPolicy,
) -> CapacityPlan:
    """How `model_name` gets `need` more bytes on each device; a device without a budget has none.

    For a waking instance, `need` is what it will hold less what it holds asleep.

    The least recently used instance goes first. Never a victim: pinned instances, the model's own, those
    awake for less than the minimum residency, and, until the model has waited `max_wait_s`, those in use.
    """
    question = _Question(need, model_name, tuple(residents), budgets)
    fits_soon = question.fits({})
    if fits_soon and question.fits_now():
        return Fits()
    leaving = f"{model_name} waits until {_names(question.leaving)} has released its memory"
    if fits_soon:
        return Wait(None, leaving)
    overdue_at = waiting_since + policy.max_wait_s
    steps = question.plan(now, overdue_at, policy)
    if steps:
        return Evict(steps)
    ends = {r.resident_since + policy.min_residency_s for r in question.residents if r.level == 0}
    for time in sorted(t for t in ends | {overdue_at} if t > now):
        if question.plan(time, overdue_at, policy):
            return Wait(None if math.isinf(time) else time, question.why_wait(now, policy))
    return Wait(None, leaving) if question.leaving else NeverFits(question.why_never())


class _EvictionTier(IntEnum):
    """How far evictions may go; the next tier is tried when the last isn't enough."""

    SLEEP = 1  # awake instances go to sleep; those that can't are stopped
    STOP_SLEEPING = 2  # and sleeping instances sleep deeper or are stopped
    STOP = 3  # and awake instances are stopped


_Choice = Mapping[str, EvictionAction | None]


@dataclass(frozen=True, slots=True)
class _Question:
    """One question: can `need` be met?"""

    need: Mapping[Device, int]
    model_name: str
    residents: tuple[Resident, ...]
    budgets: Mapping[Device, int]
    _now: dict[Device, int] = field(init=False)  # used bytes
    _settled: dict[Device, int] = field(init=False)  # used bytes once the leaving instances have left

    def __post_init__(self) -> None:
        object.__setattr__(self, "_now", _total(r.held for r in self.residents))
        object.__setattr__(self, "_settled", _total(r.held_after(r.leaving) for r in self.residents))

    @property
    def leaving(self) -> list[Resident]:
        return [r for r in self.residents if r.leaving is not None]

    @property
    def lacking(self) -> list[Device]:
        """Devices that are too full, even once the leaving instances have left."""
        return [
            device
            for device, need in self.need.items()
            if need and self._settled.get(device, 0) + need > self.budgets.get(device, 0)
        ]

    def fits_now(self) -> bool:
        return self._within(self._now)

    def fits(self, choice: _Choice) -> bool:
        """Whether the need is met, and no other device overcommitted, once the choice is executed."""
        used = _total(r.held_after(choice.get(r.instance_id) or r.leaving) for r in self.residents)
        return self._within(used)

    def _within(self, used: Mapping[Device, int]) -> bool:
        for device in used.keys() | self.need.keys():
            need, budget = self.need.get(device, 0), self.budgets.get(device, 0)
            if need == 0:  # this model needn't reduce others' overcommitment; it must not grow
                budget = max(budget, self._now.get(device, 0), self._settled.get(device, 0))
            if used.get(device, 0) + need > budget:
                return False
        return True

    def plan(self, now: float, overdue_at: float, policy: EvictionPolicy) -> tuple[EvictionStep, ...]:
        """The mildest steps that suffice at the time `now`; empty = there are none."""
        others = (r for r in self.residents if self._is_evictable(r))
        allowed = may_go(others, now, min_residency_s=policy.min_residency_s)
        idle = [r for r in allowed if not r.is_busy]
        is_overdue = now >= overdue_at
        for victims in (idle, allowed) if is_overdue else (idle,):
            for tier in _EvictionTier:
                choice = self._choose(victims, tier)
                if choice:
                    return self._in_order(choice, is_overdue)
        return ()

    def _is_evictable(self, resident: Resident) -> bool:
        return resident.may_be_chosen and resident.model_name != self.model_name

    def _choose(self, victims: Sequence[Resident], tier: _EvictionTier) -> dict[str, EvictionAction | None]:
        """Everything that the tier allows, then undone as far as possible, the last victim first."""
        actions = {r.instance_id: _allowed_actions(r, tier) for r in victims}
        choice: dict[str, EvictionAction | None] = {name: m[-1] for name, m in actions.items() if m}
        if not self.fits(choice):
            return {}
        for resident in reversed(victims):
            name = resident.instance_id
            if name in choice:
                options = (None, *actions[name])
                choice[name] = next(o for o in options if self.fits({**choice, name: o}))
        return {name: action for name, action in choice.items() if action is not None}

    def _in_order(self, choice: _Choice, is_overdue: bool) -> tuple[EvictionStep, ...]:
        """Steps that free host memory before those that take it; idle victims before busy ones.

        A model that is overdue waits no longer for victims that come into use once they are chosen.
        """
        chosen = [(r, action) for r in self.residents if (action := choice.get(r.instance_id))]

        def order(pair: tuple[Resident, EvictionAction]) -> tuple[bool, bool, float, str]:
            resident, action = pair
            takes_host = resident.held_after(action).get(HOST, 0) > resident.held.get(HOST, 0)
            return takes_host, resident.is_busy, resident.last_used, resident.instance_id

        return tuple(EvictionStep(r.instance_id, a, is_overdue) for r, a in sorted(chosen, key=order))

    def why_wait(self, now: float, policy: EvictionPolicy) -> str:
        candidates = [r for r in self.residents if self._is_evictable(r)]
        busy = [r for r in candidates if r.is_busy]
        recent = [r for r in candidates if r.level == 0 and r.resident_since + policy.min_residency_s > now]
        what = "an instance slot" if SLOT in self.lacking else "memory"
        reasons = [f"{_names(busy)} in use"] if busy else []
        if recent:
            reasons.append(f"{_names(recent)} awake for less than {policy.min_residency_s:g} s")
        return f"{self.model_name} waits for {what}: {'; '.join(reasons)}"

    def why_never(self) -> str:
        """For each device that stays too small: the budget, and which instances keep how much of it."""
        staying = [
            r for r in self.residents if not self._is_evictable(r) and r.leaving is not EvictionAction.STOP
        ]
        parts = []
        for device, need in self.need.items():
            budget = self.budgets.get(device, 0)
            keeps = [(r, num_bytes) for r in staying if (num_bytes := r.held_after(r.leaving).get(device, 0))]
            if need == 0 or need + sum(num_bytes for _, num_bytes in keeps) <= budget:
                continue
            if device == SLOT:
                text = f"one more instance slot, of which there are {budget}"
                text += "".join(f"; {_described(r)} keeps one" for r, _ in keeps)
            else:
                text = f"{_gib(need)} of {_device_name(device)}, whose budget is {_gib(budget)}"
                if need <= budget:
                    text += "; of that " + ", ".join(f"{_described(r)} keeps {_gib(n)}" for r, n in keeps)
            parts.append(text)
        return f"{self.model_name} needs {' and '.join(parts)}"


def _allowed_actions(resident: Resident, tier: _EvictionTier) -> list[EvictionAction]:
    """The mildest first."""
    sleeps = [a for a in EvictionAction if a > resident.level and a in resident.held_asleep]
    if resident.level > 0:
        return [] if tier is _EvictionTier.SLEEP else [*sleeps, EvictionAction.STOP]
    return [*sleeps, EvictionAction.STOP] if tier is _EvictionTier.STOP or not sleeps else sleeps


def _total(holdings: Iterable[Mapping[Device, int]]) -> dict[Device, int]:
    totals: dict[Device, int] = {}
    for held in holdings:
        for device, num_bytes in held.items():
            totals[device] = totals.get(device, 0) + num_bytes
    return totals


def _names(residents: Iterable[Resident]) -> str:
    return ", ".join(sorted({r.model_name for r in residents}))


def _described(resident: Resident) -> str:
    return f"{resident.model_name} ({'pinned' if resident.pinned else resident.instance_id})"


def _device_name(device: Device) -> str:
    return "host memory" if device == HOST else f"memory of {device}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"
