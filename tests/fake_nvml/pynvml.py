"""A FAKE of NVIDIA's NVML binding, for machines without GPUs: what Berth asks of it, answered from a file.

Put this directory first on PYTHONPATH (or this module into `sys.modules`) and name the file in FAKE_NVML:
{"gpus": [{"uuid", "name", "total", "free", "processes": {pid: bytes or null}, "broken": bool}]}. It is read
at every call, so that a test can change what "the driver" says. Without FAKE_NVML there is no driver. What
the fake can't show: how late a real driver tells that memory is free, and which pids it sees in a container.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class NVMLError(Exception):
    pass


@dataclass
class Memory:
    total: int
    free: int
    used: int


@dataclass
class Process:
    pid: int
    usedGpuMemory: int | None


_is_initialised = False


def nvmlInit() -> None:
    global _is_initialised
    if "FAKE_NVML" not in os.environ:
        raise NVMLError("NVML Shared Library Not Found")
    _is_initialised = True


def nvmlShutdown() -> None:
    global _is_initialised
    _is_initialised = False


def nvmlDeviceGetCount() -> int:
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    if _gpus()[index].get("broken"):
        raise NVMLError("GPU is lost")
    return index


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:
    for index, gpu in enumerate(_gpus()):
        if gpu["uuid"] == uuid:
            return index
    raise NVMLError("Not Found")


def nvmlDeviceGetMemoryInfo(handle: int) -> Memory:
    gpu = _gpus()[handle]
    return Memory(gpu["total"], gpu["free"], gpu["total"] - gpu["free"])


def nvmlDeviceGetUUID(handle: int) -> str:
    return str(_gpus()[handle]["uuid"])


def nvmlDeviceGetName(handle: int) -> str:
    return str(_gpus()[handle]["name"])


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[Process]:
    processes = _gpus()[handle].get("processes", {})
    return [Process(int(pid), num_bytes) for pid, num_bytes in processes.items()]


def _gpus() -> list[dict[str, Any]]:
    if not _is_initialised:
        raise NVMLError("Uninitialized")
    gpus: list[dict[str, Any]] = json.loads(Path(os.environ["FAKE_NVML"]).read_text())["gpus"]
    return gpus
