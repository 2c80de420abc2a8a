"""Divides a machine's cores among ranks, so that no two compute on the same."""

from __future__ import annotations

import os
from pathlib import Path

from engine.execution.threads import siblings_of, usable_cpus


def divide_cores(size: int) -> list[set[int]] | None:
    """The CPUs of each rank: whole cores, those of one NUMA node together.

    None if there are fewer cores than ranks, or the system doesn't bind processes to cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    usable = usable_cpus()
    cores = {frozenset(siblings_of(cpu) & usable) for cpu in usable}
    if len(cores) < size:
        return None
    ordered = sorted(cores, key=lambda core: (_node_of(min(core)), min(core)))
    ends = [len(ordered) * rank // size for rank in range(size + 1)]
    return [set().union(*ordered[ends[rank] : ends[rank + 1]]) for rank in range(size)]


def _node_of(cpu: int) -> int:
    folders = Path(f"/sys/devices/system/cpu/cpu{cpu}").glob("node[0-9]*")
    return min((int(folder.name.removeprefix("node")) for folder in folders), default=0)
