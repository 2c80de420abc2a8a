"""The ranks of one model as threads: what they compute, without processes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class ThreadGroup:
    """A DeviceGroup. All ranks' tensors lie in one list."""

    def __init__(self, rank: int, tensors: list[torch.Tensor | None], barrier: Barrier) -> None:
        self.rank = rank
        self.size = len(tensors)
        self._tensors = tensors
        self._barrier = barrier

    def connect(self, *args: Any, **options: Any) -> None:
        """Nothing to wait for."""

    def abort(self) -> None:
        """Whoever waits for this rank fails."""
        self._barrier.abort()

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(torch.stack(self._exchange(x)).sum(dim=0))

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        tensors = self._exchange(x)
        return torch.cat(tensors, dim=-1) if self.rank == 0 else x

    def _exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self._tensors[self.rank] = x.clone()
        self._barrier.wait()
        tensors = [tensor for tensor in self._tensors if tensor is not None]
        self._barrier.wait()
        return tensors


def on_ranks(size: int, run: Callable[[ThreadGroup], T]) -> list[T]:
    """What `run` returns on each rank."""
    tensors: list[torch.Tensor | None] = [None] * size
    barrier = Barrier(size, timeout=60)

    def guarded(rank: int) -> T:
        try:
            return run(ThreadGroup(rank, tensors, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as executor:
        return list(executor.map(guarded, range(size)))
