"""The GPUs of this machine and the processes that hold their memory, from NVML. Opens no CUDA context.

Without NVML, or when it fails, there are no GPUs. Calls block for milliseconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

logger = logging.getLogger("berth.manager")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that Berth may use. `index`: its position in the outer CUDA_VISIBLE_DEVICES, else in NVML."""

    uuid: str
    index: int
    name: str
    total_bytes: int
    free_bytes: int


class GpuDriver:
    """NVML, loaded on first use and kept. Thread-safe.

    `environ` is Berth's own environment: its CUDA_VISIBLE_DEVICES limits the GPUs that are listed.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._mask = environ.get("CUDA_VISIBLE_DEVICES")
        self._lock = threading.Lock()
        self._nvml: Any = None  # the module pynvml once initialised
        self._is_absent = False

    def list_gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that the outer mask leaves, in its order, with their free memory."""
        nvml = self._library()
        if nvml is None:
            return ()
        try:
            count = int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError as error:
            logger.warning("NVML can't count the GPUs: %s", error)
            return ()
        found = [gpu for index in range(count) if (gpu := _read_gpu(nvml, index)) is not None]
        return apply_mask(found, self._mask)

    def memory_by_pid(self, uuid: str) -> dict[int, int]:
        """Bytes that each process holds on a GPU; empty where the driver doesn't report them.

        In a container, the driver may report the host's pids: then none matches a process of ours.
        """
        nvml = self._library()
        if nvml is None:
            return {}
        try:
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))
        except nvml.NVMLError as error:
            logger.debug("NVML doesn't list the processes of %s: %s", uuid, error)
            return {}
        totals: dict[int, int] = {}
        for process in processes:
            if process.usedGpuMemory is not None:
                totals[process.pid] = totals.get(process.pid, 0) + int(process.usedGpuMemory)
        return totals

    def free_bytes(self, uuid: str) -> int | None:
        """Free memory of a GPU; None if there is no such GPU."""
        return next((gpu.free_bytes for gpu in self.list_gpus() if gpu.uuid == uuid), None)

    def close(self) -> None:
        """Shut NVML down. The next call loads it again."""
        with self._lock:
            if self._nvml is not None:
                self._nvml.nvmlShutdown()
                self._nvml = None

    def _library(self) -> Any:
        with self._lock:
            if self._nvml is None and not self._is_absent:
                self._nvml = _load()
                self._is_absent = self._nvml is None
            return self._nvml


def _load() -> Any:
    """pynvml, initialised; None where that fails."""
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        logger.info("pynvml isn't installed: Berth sees no GPUs")
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.info("NVML: %s: Berth sees no GPUs", error)
        return None
    return pynvml


def _read_gpu(nvml: Any, index: int) -> Gpu | None:
    """None for a GPU that has failed: the others remain usable."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError as error:
        logger.warning("NVML can't read GPU %d, which is ignored: %s", index, error)
        return None
    # `total` includes the driver's own memory, `free` doesn't: no process can use the difference.
    return Gpu(str(uuid), index, str(name), int(memory.total), int(memory.free))


def apply_mask(gpus: Sequence[Gpu], mask: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, renumbered in its order. None = no mask, "" = no GPU.

    An entry is an index, a UUID or the beginning of one. As in CUDA, an unknown entry ends the list.
    Indices are NVML's, by PCI bus; CUDA's are equal if all GPUs are of one model, or by CUDA_DEVICE_ORDER.
    """
    if mask is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for entry in mask.split(","):
        gpu = find_gpu(gpus, entry.strip())
        if gpu is None or any(gpu.uuid == other.uuid for other in chosen):
            if entry.strip() not in ("", "-1"):
                logger.warning(
                    "CUDA_VISIBLE_DEVICES=%s: %r and everything after it is ignored", mask, entry.strip()
                )
            break
        chosen.append(replace(gpu, index=len(chosen)))
    return tuple(chosen)


def find_gpu(gpus: Sequence[Gpu], name: str) -> Gpu | None:
    """The GPU of this index, UUID or unambiguous beginning of a UUID."""
    if name.isdecimal():
        return next((gpu for gpu in gpus if gpu.index == int(name)), None)
    matches = [gpu for gpu in gpus if name.startswith("GPU-") and gpu.uuid.startswith(name)]
    return matches[0] if len(matches) == 1 else None
