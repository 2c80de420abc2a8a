"""Whom to put to sleep or to stop so that a model fits, and whose start comes next.

Pure: bytes and monotonic seconds are handed in, nothing is measured or ended here. Knows nothing of how a
sleep or a stop is done. Places for instances are one more device, of which each process holds one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

Device = str  # "cpu" = host memory; else a GPU's UUID
HOST: Device = "cpu"
PLACE: Device = "place"  # a port: each instance with a process holds one, asleep too; not in bytes


class EvictionAction(IntEnum):
    """What is done to a victim; the value is the level it has afterwards."""

    SLEEP1 = 1
    SLEEP2 = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class Resident:
    """An instance that holds memory, as the policy sees it. Times are monotonic seconds."""

    instance_id: str
    model_name: str
    level: int  # 0 awake (or starting), 1 and 2 asleep
    held: Mapping[Device, int]  # bytes now; of one that starts, what it is expected to need
    held_asleep: Mapping[int, Mapping[Device, int]]  # level -> bytes it would hold; empty: it can't sleep
    in_flight: int
    queued: int
    pinned: bool
    last_used: float
    resident_since: float  # when it last became awake
    leaving: EvictionAction | None = None  # on its way there already: what it gives back is counted on

    @property
    def is_busy(self) -> bool:
        return self.in_flight > 0 or self.queued > 0

    def held_after(self, action: EvictionAction | None) -> Mapping[Device, int]:
        """Bytes it holds once the action is done; None = nothing is done."""
        if action is None:
            return self.held
        return {} if action is EvictionAction.STOP else self.held_asleep[action]


@dataclass(frozen=True, slots=True)
class EvictionPolicy:
    """`min_residency_s`: what is awake stays so this long. `max_wait_s`: then a waiter may disturb others."""

    min_residency_s: float = 10.0
    max_wait_s: float = 60.0


@dataclass(frozen=True, slots=True)
class EvictionStep:
    """One victim. `must_drain`: it is in use, so its gate closes and its leases end first."""

    instance_id: str
    action: EvictionAction
    must_drain: bool


@dataclass(frozen=True, slots=True)
class Fits:
    """There is room now."""


@dataclass(frozen=True, slots=True)
class Evict:
    """Do these in their order: memory needed by a later step is freed by an earlier one. Then plan again."""

    steps: tuple[EvictionStep, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Plan again at `until`, or when a lease or a stop ends; None = only then."""

    until: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class NeverFits:
    """Waiting won't help; the message says what holds the memory."""

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
    """How `model_name` gets `need` bytes more on each device; a device without a budget has none.

    For a sleeper that wakes, `need` is what it will hold less what it holds.

    Least recent use goes first. Never a victim: the pinned, the model's own instances, those awake for
    less than the minimum residency, and, until the waiter has waited `max_wait_s`, those in use.
    """
    room = _Room(need, model_name, tuple(residents), budgets)
    fits_soon = room.fits({})
    if fits_soon and room.fits_now():
        return Fits()
    leaving = f"{model_name} waits until {_names(room.leaving)} has given its memory back"
    if fits_soon:
        return Wait(None, leaving)
    overdue_at = waiting_since + policy.max_wait_s
    steps = room.plan(now, overdue_at, policy)
    if steps:
        return Evict(steps)
    ends = {r.resident_since + policy.min_residency_s for r in room.residents if r.level == 0}
    for time in sorted(t for t in ends | {overdue_at} if t > now):
        if room.plan(time, overdue_at, policy):
            return Wait(None if math.isinf(time) else time, room.why_wait(now, policy))
    return Wait(None, leaving) if room.leaving else NeverFits(room.why_never())


@dataclass(frozen=True, slots=True)
class WaitingModel:
    """Requests that wait for one model, which isn't awake. `priority`: the lower, the sooner (as vLLM's)."""

    model_name: str
    since: float  # monotonic seconds, of the one that waits longest
    priority: int = 0
    queued: int = 1


def next_to_start(waiting: Sequence[WaitingModel], ageing_s: float = 10.0) -> str | None:
    """The model whose start comes next; entries of one model count together.

    The longest wait wins. A step of priority is worth `ageing_s` seconds of waiting, so that no stream of
    urgent requests holds another model up for ever. Ties go to the longer queue.
    """
    turns: dict[str, float] = {}
    queued: dict[str, int] = {}
    for entry in waiting:
        turn = entry.since + entry.priority * ageing_s
        turns[entry.model_name] = min(turn, turns.get(entry.model_name, math.inf))
        queued[entry.model_name] = queued.get(entry.model_name, 0) + entry.queued
    return min(turns, key=lambda name: (turns[name], -queued[name], name), default=None)


class _Effort(IntEnum):
    """How far evictions may go; the next is tried when the last isn't enough."""

    SLEEP = 1  # the awake go to sleep; those that can't are stopped
    STOP_SLEEPERS = 2  # and sleepers sleep deeper or are stopped
    STOP = 3  # and the awake are stopped


_Choice = Mapping[str, EvictionAction | None]


@dataclass(frozen=True, slots=True)
class _Room:
    """One question: can `need` be met?"""

    need: Mapping[Device, int]
    model_name: str
    residents: tuple[Resident, ...]
    budgets: Mapping[Device, int]
    _now: dict[Device, int] = field(init=False)  # used bytes
    _settled: dict[Device, int] = field(init=False)  # the same once those that leave have left

    def __post_init__(self) -> None:
        object.__setattr__(self, "_now", _total(r.held for r in self.residents))
        object.__setattr__(self, "_settled", _total(r.held_after(r.leaving) for r in self.residents))

    @property
    def leaving(self) -> list[Resident]:
        return [r for r in self.residents if r.leaving is not None]

    @property
    def lacking(self) -> list[Device]:
        """Devices that don't have what is needed, even once those that leave have left."""
        return [
            device
            for device, need in self.need.items()
            if need and self._settled.get(device, 0) + need > self.budgets.get(device, 0)
        ]

    def fits_now(self) -> bool:
        return self._within(self._now)

    def fits(self, choice: _Choice) -> bool:
        """Whether there is room, and no other device is overdrawn, when the choice is done."""
        used = _total(r.held_after(choice.get(r.instance_id) or r.leaving) for r in self.residents)
        return self._within(used)

    def _within(self, used: Mapping[Device, int]) -> bool:
        for device in used.keys() | self.need.keys():
            need, budget = self.need.get(device, 0), self.budgets.get(device, 0)
            if need == 0:  # what others have overdrawn is not this model's debt; it may not grow
                budget = max(budget, self._now.get(device, 0), self._settled.get(device, 0))
            if used.get(device, 0) + need > budget:
                return False
        return True

    def plan(self, now: float, overdue_at: float, policy: EvictionPolicy) -> tuple[EvictionStep, ...]:
        """The gentlest steps that would do at the time `now`; empty = there are none."""
        allowed = [
            r
            for r in self.residents
            if self._may_ever_go(r) and (r.level > 0 or r.resident_since + policy.min_residency_s <= now)
        ]
        idle = [r for r in allowed if not r.is_busy]
        for victims in (idle, allowed) if now >= overdue_at else (idle,):
            for effort in _Effort:
                choice = self._choose(victims, effort)
                if choice:
                    return self._in_order(choice)
        return ()

    def _may_ever_go(self, resident: Resident) -> bool:
        return not resident.pinned and resident.leaving is None and resident.model_name != self.model_name

    def _choose(self, victims: Sequence[Resident], effort: _Effort) -> dict[str, EvictionAction | None]:
        """All that the effort allows, then taken back as far as possible, the most precious first."""
        moves = {r.instance_id: _moves(r, effort) for r in victims}
        choice: dict[str, EvictionAction | None] = {name: m[-1] for name, m in moves.items() if m}
        if not self.fits(choice):
            return {}
        for resident in sorted(victims, key=_preciousness, reverse=True):
            name = resident.instance_id
            if name in choice:
                options = (None, *moves[name])
                choice[name] = next(o for o in options if self.fits({**choice, name: o}))
        return {name: action for name, action in choice.items() if action is not None}

    def _in_order(self, choice: _Choice) -> tuple[EvictionStep, ...]:
        """Those that free host memory before those that take it; the idle before the busy."""
        chosen = [(r, action) for r in self.residents if (action := choice.get(r.instance_id))]

        def order(pair: tuple[Resident, EvictionAction]) -> tuple[bool, bool, float, str]:
            resident, action = pair
            takes_host = resident.held_after(action).get(HOST, 0) > resident.held.get(HOST, 0)
            return takes_host, resident.is_busy, resident.last_used, resident.instance_id

        return tuple(EvictionStep(r.instance_id, a, r.is_busy) for r, a in sorted(chosen, key=order))

    def why_wait(self, now: float, policy: EvictionPolicy) -> str:
        candidates = [r for r in self.residents if self._may_ever_go(r)]
        busy = [r for r in candidates if r.is_busy]
        young = [r for r in candidates if r.level == 0 and r.resident_since + policy.min_residency_s > now]
        what = "a place" if PLACE in self.lacking else "memory"
        reasons = [f"{_names(busy)} in use"] if busy else []
        if young:
            reasons.append(f"{_names(young)} awake for less than {policy.min_residency_s:g} s")
        return f"{self.model_name} waits for {what}: {'; '.join(reasons)}"

    def why_never(self) -> str:
        """For each device that stays too small: the budget, and who keeps how much of it."""
        staying = [
            r for r in self.residents if not self._may_ever_go(r) and r.leaving is not EvictionAction.STOP
        ]
        parts = []
        for device, need in self.need.items():
            budget = self.budgets.get(device, 0)
            keeps = [(r, num_bytes) for r in staying if (num_bytes := r.held_after(r.leaving).get(device, 0))]
            if need == 0 or need + sum(num_bytes for _, num_bytes in keeps) <= budget:
                continue
            if device == PLACE:
                text = f"one more place for an instance, of which there are {budget}"
                text += "".join(f"; {_whose(r)} keeps one" for r, _ in keeps)
            else:
                text = f"{_gib(need)} of {_device_name(device)}, whose budget is {_gib(budget)}"
                if need <= budget:
                    text += "; of that " + ", ".join(f"{_whose(r)} keeps {_gib(n)}" for r, n in keeps)
            parts.append(text)
        return f"{self.model_name} needs {' and '.join(parts)}"


def _moves(resident: Resident, effort: _Effort) -> list[EvictionAction]:
    """What may be done to it, the gentlest first."""
    sleeps = [a for a in EvictionAction if a > resident.level and a in resident.held_asleep]
    if resident.level > 0:
        return [] if effort is _Effort.SLEEP else [*sleeps, EvictionAction.STOP]
    return [*sleeps, EvictionAction.STOP] if effort is _Effort.STOP or not sleeps else sleeps


def _preciousness(resident: Resident) -> tuple[bool, bool, float, str]:
    return resident.is_busy, resident.level == 0, resident.last_used, resident.instance_id


def _total(holdings: Iterable[Mapping[Device, int]]) -> dict[Device, int]:
    totals: dict[Device, int] = {}
    for held in holdings:
        for device, num_bytes in held.items():
            totals[device] = totals.get(device, 0) + num_bytes
    return totals


def _names(residents: Iterable[Resident]) -> str:
    return ", ".join(sorted({r.model_name for r in residents}))


def _whose(resident: Resident) -> str:
    return f"{resident.model_name} ({'pinned' if resident.pinned else resident.instance_id})"


def _device_name(device: Device) -> str:
    return "host memory" if device == HOST else f"memory of {device}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"
