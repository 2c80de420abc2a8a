"""How much memory engines may hold, how much each one really holds, and when it is free again.

Everything here reads the machine's state and blocks for milliseconds, except `wait_until_freed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from host_limits.host_memory import host_available_bytes, host_total_bytes
from instance_manager.memory.devices import HOST, Device
from instance_manager.memory.gpu import Gpu, GpuDriver

_POLL_MIN_S = 0.01
_POLL_MAX_S = 0.1


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
