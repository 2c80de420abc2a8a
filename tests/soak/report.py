"""The results of a soak as text, and the guarantees that it found violated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tests.soak.client import Outcome
from tests.soak.scenario import Run
from tests.soak.watch import MemoryWatch

_MIB = 1 << 20
_MAX_SHOWN = 12


def broken_promises(run: Run) -> list[str]:
    """The violated guarantees, one per line; empty = none."""
    broken = [
        f"failed after {one.wait_s:.2f} s: {one.request}: {one.problem}"
        for one in run.traffic.attempts
        if one.outcome is Outcome.FAILED
    ]
    broken += over_budget(run.memory, run.budget_bytes)
    broken += run.events.problems
    broken += [f"in Berth's log: {line}" for line in run.faults_in_log]
    answered = {one.request.model for one in run.traffic.attempts if one.outcome is Outcome.ANSWERED}
    broken += [f"{name} has answered nothing" for name in run.plan.models if name not in answered]
    if not run.events.evictions:
        broken.append("no model was ever evicted: the soak has tested nothing")
    return broken


def over_budget(memory: MemoryWatch, budget_bytes: int) -> list[str]:
    """Empty if memory never exceeded the budget."""
    if not memory.over:
        return []
    most = max((held for _, held in memory.over), key=lambda held: sum(held.values()))
    each = {pid: f"{size / _MIB:.0f} MiB" for pid, size in most.items()}
    return [
        f"memory was over the budget in {len(memory.over)} of {len(memory.held_bytes)} samples, "
        f"at most by {(sum(most.values()) - budget_bytes) / _MIB:.1f} MiB: {each}"
    ]


def table(run: Run) -> str:
    """Lines of name and value."""
    outcomes = Counter(one.outcome for one in run.traffic.attempts)
    waits = sorted(one.wait_s for one in run.traffic.attempts if one.outcome is Outcome.ANSWERED)
    states = run.events.states
    memory = run.memory
    rows = [
        ("requests", f"{len(run.traffic.attempts)} by {run.plan.num_clients} clients"),
        ("answered", f"{outcomes[Outcome.ANSWERED]}"),
        ("left on purpose", f"{outcomes[Outcome.LEFT]}"),
        ("failed", f"{outcomes[Outcome.FAILED]}"),
        ("starts, stops", f"{states['health_checking']}, {states['stopped']}"),
        ("sleeps, wakes", f"{states['sleeping']}, {states['waking']}"),
        ("evictions", counted(run.events.evictions)),
        ("stops in use", f"{run.events.drains}, drained first"),
        ("expiries", counted(run.events.expiries)),
        ("wait, median", f"{quantile(waits, 0.5):.3f} s"),
        ("wait, 99 %", f"{quantile(waits, 0.99):.2f} s"),
        ("wait, longest", f"{quantile(waits, 1):.2f} s"),
        ("budget", f"{run.budget_bytes / _MIB:.0f} MiB"),
        ("most held", f"{memory.peak_bytes / _MIB:.0f} MiB ({len(memory.held_bytes)} samples)"),
        ("with libraries", f"{max(memory.pss_bytes, default=0) / _MIB:.0f} MiB"),
        ("processes left", "none" if run.ends_clean else "SOME"),
    ]
    return "\n".join(f"{name:<16} {value}" for name, value in rows)


def shown(broken: Sequence[str]) -> str:
    """The first lines, and the number of the others."""
    rest = [f"… and {len(broken) - _MAX_SHOWN} more"] if len(broken) > _MAX_SHOWN else []
    return "\n".join([*(f"BROKEN: {line}" for line in broken[:_MAX_SHOWN]), *rest])


def quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest value not below `part` of all values; 0 without values."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


def counted(counter: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counter.items())) or "none"
