"""Main memory that this process may use. `root` is the root of the file system, as in control_groups."""

from __future__ import annotations

import os
from pathlib import Path

from host_limits.control_groups import memory_limits

_ROOT = Path("/")


def host_total_bytes(root: Path = _ROOT) -> int:
    """The machine's memory, or the limit of a control group around us if that is less."""
    total = _meminfo(root).get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *(group.limit_bytes for group in memory_limits(root))])


def host_available_bytes(root: Path = _ROOT) -> int:
    """Memory that can be used without swapping, on the machine and within each control group's limit."""
    machine = _meminfo(root).get("MemAvailable")
    available = _available_elsewhere() if machine is None else machine
    return min([available, *(group.available_bytes for group in memory_limits(root))])


def _meminfo(root: Path) -> dict[str, int]:
    """In bytes; empty where the system has no /proc."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, _, value in fields if value}


def _available_elsewhere() -> int:
    """On macOS, say."""
    import psutil  # loaded only there

    return int(psutil.virtual_memory().available)
