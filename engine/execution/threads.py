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
    cores = _physical_cores(_usable_cpus())
    limit = cpu_limit()
    return max(1, cores if limit is None else min(cores, round(limit)))


def _usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS has no affinity


def _physical_cores(cpus: set[int]) -> int:
    """Hyper-threads share a core's arithmetic units: two threads on one core are slower than one."""
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    return len(cores)
