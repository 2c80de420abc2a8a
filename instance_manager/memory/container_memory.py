"""How much memory an engine in a container holds: by its control group, and by the processes in it on GPUs.

Its processes are no descendants of ours. Blocks for milliseconds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import psutil

from host_limits.control_groups import group_memory, group_pids
from instance_manager.memory.device_memory import private_bytes
from instance_manager.memory.devices import HOST, Device
from instance_manager.memory.gpu import GpuDriver


def add_containers(
    held: Mapping[int, dict[Device, int]], containers: Mapping[int, int], driver: GpuDriver
) -> None:
    """Add what containers hold to what their engines' process groups hold.

    `containers`: the first process of each container, by the process group of the program that started it.
    """
    if not containers:
        return
    owners: dict[int, int] = {}  # pid -> process group
    for pgid, pid in containers.items():
        pids, in_group = group_pids(pid), group_memory(pid)
        if not pids or os.getpid() in pids:  # it has no control group of its own
            pids, in_group = _tree(pid), None
        owners |= dict.fromkeys(pids, pgid)
        num_bytes = _private_bytes(pids) if in_group is None else in_group
        held[pgid][HOST] = held[pgid].get(HOST, 0) + num_bytes
    for gpu in driver.list_gpus():
        for pid, num_bytes in driver.memory_by_pid(gpu.uuid).items():
            if (owner := owners.get(pid)) is not None:
                held[owner][gpu.uuid] = held[owner].get(gpu.uuid, 0) + num_bytes


def _tree(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    return []


def _private_bytes(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):
            total += private_bytes(psutil.Process(pid))
    return total
