"""What one layer carries from token to token, whatever computes it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class StateTensor:
    name: str
    shape: tuple[int, ...]  # of one sequence
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StateSpec:
    tensors: tuple[StateTensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)


def bytes_per_slot(specs: Iterable[StateSpec]) -> int:
    """Bytes of one state of all layers."""
    return sum(spec.num_bytes for spec in specs)
