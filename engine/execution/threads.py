"""How many threads to compute with on a CPU."""

from __future__ import annotations

import os
from pathlib import Path


def num_compute_threads(requested: int | None) -> int:
    """The threads asked for; else OMP_NUM_THREADS; else one per physical core that this process may use."""
    if requested is not None:
        return requested
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if named.isdigit() and int(named) > 0:
        return int(named)
    return max(1, min(_physical_cores(_usable_cpus()), _cgroup_quota()))


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


def _cgroup_quota() -> int:
    """Whole CPUs that a version 2 control group grants; a container's limit doesn't show in the affinity."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return 1 << 16 if quota == "max" else max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return 1 << 16
