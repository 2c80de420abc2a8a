"""How much memory there is, how much each engine really holds, and when it is free again.

Everything here reads the machine's state and blocks for milliseconds, except `wait_until_freed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from instance_manager.memory.devices import HOST, Device
from instance_manager.memory.gpu import Gpu, GpuDriver

_POLL_MIN_S = 0.01
_POLL_MAX_S = 0.1
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def measure_groups(pgids: Iterable[int], driver: GpuDriver) -> dict[int, dict[Device, int]]:
    """What each process group holds on each device: what its end would free. {} for a group that is gone.

    Where the driver doesn't list processes (in some containers), only host memory is measured.
    """
    held: dict[int, dict[Device, int]] = {pgid: {} for pgid in pgids}
    if not held:
        return held
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            group = held.get(os.getpgid(process.pid))
            if group is not None:
                group[HOST] = group.get(HOST, 0) + private_bytes(process)
    for gpu in driver.list_gpus():
        for pid, num_bytes in driver.memory_by_pid(gpu.uuid).items():
            with contextlib.suppress(OSError):
                group = held.get(os.getpgid(pid))
                if group is not None:
                    group[gpu.uuid] = group.get(gpu.uuid, 0) + num_bytes
    return held


def private_bytes(process: psutil.Process) -> int:
    """A process's private host memory, plus its proportional part of shared memory.

    File pages that other processes map too (libraries, the weights of a second replica) don't count: they
    exist once and stay. Raises psutil.Error or OSError where the process is gone or not ours.
    """
    with contextlib.suppress(FileNotFoundError, PermissionError, ValueError, KeyError):
        return _from_smaps(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _from_smaps(text: str) -> int:
    """Anonymous and shared memory in proportion, and file pages that no other process maps."""
    fields = {}
    for line in text.splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    own_file_pages = min(fields["Pss_File"], fields["Private_Clean"])
    return fields["Pss_Anon"] + fields["Pss_Shmem"] + own_file_pages


def budgets(
    gpus: Sequence[Gpu], ours: Mapping[Device, int], *, host_fraction: float, gpu_fraction: float
) -> dict[Device, int]:
    """Bytes that all engines together may hold on each device.

    A fraction of the total, or less if other programs leave less. `ours`: the sums that `measure_groups`
    found for our engines.
    """
    result = {HOST: min(int(host_total_bytes() * host_fraction), host_available_bytes() + ours.get(HOST, 0))}
    for gpu in gpus:
        fraction = int(gpu.total_bytes * gpu_fraction)
        result[gpu.uuid] = min(fraction, gpu.free_bytes + ours.get(gpu.uuid, 0))
    return result


async def wait_until_freed(device: Device, free_bytes: int, timeout_s: float, driver: GpuDriver) -> bool:
    """Wait until `free_bytes` are free on the device, at most `timeout_s` seconds; returns whether they are.

    A driver frees memory some time after the process has ended (up to 1.5 s).
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    interval = _POLL_MIN_S
    while (await asyncio.to_thread(_free_on, device, driver)) < free_bytes:
        remaining = deadline - loop.time()
        if remaining <= 0:
            return False
        await asyncio.sleep(min(interval, remaining))
        interval = min(interval * 2, _POLL_MAX_S)
    return True


def _free_on(device: Device, driver: GpuDriver) -> int:
    return host_available_bytes() if device == HOST else driver.free_bytes(device) or 0


def host_total_bytes() -> int:
    """The machine's memory, or the control group's limit if that is less."""
    limits = [limit for limit, _ in cgroup_memory(_OWN_CGROUP, _CGROUP_ROOT)]
    return min([int(psutil.virtual_memory().total), *limits])


def host_available_bytes() -> int:
    """Memory available without swapping, on the machine and within each control group's limit."""
    available = [max(limit - used, 0) for limit, used in cgroup_memory(_OWN_CGROUP, _CGROUP_ROOT)]
    return min([int(psutil.virtual_memory().available), *available])


def cgroup_memory(own: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each readable control group around this process, version 2 or 1.

    Use excludes the page cache that the kernel would drop first. `own`: /proc/self/cgroup.
    """
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit_name, used_name, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit_name, used_name = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = base / path.lstrip("/")
        for directory in (group, *group.parents):
            if directory == base.parent:
                break
            limit, used = _number(directory / limit_name), _number(directory / used_name)
            if limit is not None and used is not None:
                yield limit, max(used - _stat(directory / "memory.stat", cache), 0)


def _number(path: Path) -> int | None:
    """None where there is no such file, or "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _stat(path: Path, name: str) -> int:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
