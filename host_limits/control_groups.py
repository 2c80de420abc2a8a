"""The limits of the control groups around this process, version 1 or 2: its own and all its ancestors.

`root` is the root of the file system; recorded trees replace it in tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOUNT = "sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Of one control group. `used_bytes` excludes the page cache that the kernel would drop first."""

    limit_bytes: int
    used_bytes: int

    @property
    def available_bytes(self) -> int:
        return max(self.limit_bytes - self.used_bytes, 0)


@dataclass(frozen=True, slots=True)
class _MemoryFiles:
    limit: str
    used: str
    cache: str  # the key in memory.stat, descendants included


_MEMORY_FILES = {
    1: _MemoryFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: _MemoryFiles("memory.max", "memory.current", "inactive_file"),
}


def memory_limits(root: Path = Path("/")) -> Iterator[MemoryLimit]:
    """Of each group that has a limit and can be read, the innermost first."""
    for version, group in _groups(root, "memory"):
        files = _MEMORY_FILES[version]
        limit = _number(group / files.limit)
        if limit is not None:
            used = (_number(group / files.used) or 0) - _stat(group / "memory.stat", files.cache)
            yield MemoryLimit(limit, max(used, 0))


def group_memory(pid: int, root: Path = Path("/")) -> int | None:
    """Bytes that a process's own group holds, without the page cache that the kernel would drop first.

    None if the process or its group can't be seen from here.
    """
    for version, group in _groups(root, "memory", str(pid)):
        files = _MEMORY_FILES[version]
        if (used := _number(group / files.used)) is not None:
            return max(used - _stat(group / "memory.stat", files.cache), 0)
        return None
    return None


def group_pids(pid: int, root: Path = Path("/")) -> list[int]:
    """The processes in a process's own group and in those below it."""
    for _, group in _groups(root, "memory", str(pid)):
        texts = [_text(path) for path in (group / "cgroup.procs", *group.rglob("*/cgroup.procs"))]
        return [int(number) for text in texts for number in text.split()]
    return []


def cpu_limit(root: Path = Path("/")) -> float | None:
    """CPUs that the groups grant, possibly a fraction; None = no limit. Affinity doesn't show this limit."""
    quotas = [_cpu_quota(version, group) for version, group in _groups(root, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _cpu_quota(version: int, group: Path) -> float | None:
    if version == 1:
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    else:
        quota, period = (_as_number(text) for text in (*_text(group / "cpu.max").split(), "", "")[:2])
    return quota / period if quota and period and quota > 0 else None


def _groups(root: Path, controller: str, process: str = "self") -> Iterator[tuple[int, Path]]:
    """Version and directory of each group around a process, the innermost first.

    In a container the path may be the host's, and not exist here: the mount's root is our own group then.
    """
    mount = root / _MOUNT
    for line in _text(root / "proc" / process / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, base = 2, mount
        elif controller in controllers.split(","):
            joint = mount / controllers  # such as cpu,cpuacct
            version, base = 1, joint if joint.is_dir() else mount / controller
        else:
            continue
        group = base / path.lstrip("/")
        for directory in (group, *group.parents):
            if directory == base.parent:
                break
            yield version, directory


def _number(path: Path) -> int | None:
    """None where there is no such file, or "max"."""
    return _as_number(_text(path))


def _as_number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _stat(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
