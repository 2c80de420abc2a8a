"""How many threads to compute with on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

from host_limits.control_groups import cpu_limit


def num_compute_threads(requested: int | None) -> int:
    """The threads asked for; else OMP_NUM_THREADS; else one per physical core that this process may use."""
    if requested is not None:
        return requested
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if named.isdigit() and int(named) > 0:
        return int(named)
    cores = _physical_cores(usable_cpus())
    limit = cpu_limit()
    return max(1, cores if limit is None else min(cores, round(limit)))


def usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS has no affinity


def _physical_cores(cpus: set[int]) -> int:
    return len({frozenset(siblings_of(cpu)) for cpu in cpus})


def siblings_of(cpu: int) -> set[int]:
    """The hyper-threads of its core, which share arithmetic units: two threads there are slower than one."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    if not siblings.exists():
        return {cpu}
    ends = [part.partition("-") for part in siblings.read_text().strip().split(",")]
    return {one for first, _, last in ends for one in range(int(first), int(last or first) + 1)}
