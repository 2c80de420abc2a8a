"""The ranks' collective operations, by torch.distributed: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

dist: Any = torch.distributed  # parts of it have no types
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
STEP_TIMEOUT_S = 60.0  # without a sign of another rank in a collective operation


class RankGroup:
    """A DeviceGroup (engine/models/layers/division.py); `connect` before the first operation."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._group: Any = None

    def connect(self, rendezvous: Path, device: torch.device, *, timeout_s: float = STEP_TIMEOUT_S) -> None:
        """Wait for all ranks, which meet at a file that no other group has used."""
        store = dist.FileStore(str(rendezvous), self.size)
        timeout = timedelta(seconds=timeout_s)
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self._group = dist.ProcessGroupNCCL(store, self.rank, self.size, options)
        else:
            options = dist.ProcessGroupGloo._Options()
            options._timeout = timeout
            options._devices = [dist.ProcessGroupGloo.create_device(interface=_LOOPBACK)]
            self._group = dist.ProcessGroupGloo(store, self.rank, self.size, options)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        self._group.allreduce([x]).wait()
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        options = dist.GatherOptions()
        options.rootRank = 0
        if self.rank > 0:
            self._group.gather([], [x.contiguous()], options).wait()
            return x
        gathered = [torch.empty_like(x) for _ in range(self.size)]
        self._group.gather([gathered], [x.contiguous()], options).wait()
        return torch.cat(gathered, dim=-1)

    def close(self) -> None:
        self._group = None
