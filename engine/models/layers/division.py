"""What one device of several holds of a layer, and how the devices put their results together.

A layer whose outputs are divided computes some columns of the result; one whose inputs are divided computes
an addend of it. The second follows the first, so that only its results need to be added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from engine.errors import UnsupportedModel
from engine.models.tensor_source import ALL


class DeviceGroup(Protocol):
    """The devices that share a model. All call the same methods in the same order."""

    rank: int
    size: int

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all devices' tensors, in place."""
        ...

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """All devices' columns, [S, columns] → [S, size * columns], on rank 0; elsewhere `x`."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """Features `start` … `stop` - 1 of the `size` that a stored matrix has on one of its axes."""

    start: int
    stop: int
    size: int

    @property
    def is_whole(self) -> bool:
        return self.stop - self.start == self.size

    def of(self, size: int) -> slice:
        """The same share of an axis with another size, such as one element for each block of features."""
        if self.is_whole:
            return ALL
        if self.start * size % self.size or self.stop * size % self.size:
            raise UnsupportedModel(
                f"The model can't be divided among so many devices: features {self.start} to {self.stop} of "
                f"{self.size} aren't a whole number of the {size} blocks in which they are stored. Use a "
                "lower --tensor-parallel-size.",
                advice=None,
            )
        return slice(self.start * size // self.size, self.stop * size // self.size)


def whole(size: int) -> Share:
    return Share(0, size, size)


def share_of(own: int, stored: int, group: DeviceGroup) -> Share:
    """Of `stored` features the `own` of this rank; several ranks have the same where there are too few."""
    if own == stored:
        return whole(stored)
    num_shares = stored // own
    if stored % own or group.size % num_shares:
        raise ValueError(f"{stored} features can't be divided into shares of {own} for {group.size} devices.")
    start = group.rank * num_shares // group.size * own
    return Share(start, start + own, stored)


@dataclass(frozen=True, slots=True)
class Division:
    """Which part of its stored projections a linear layer holds."""

    outputs: tuple[Share, ...]  # of each projection
    inputs: Share

    def sections(self, *, is_apart: bool) -> list[tuple[int, Share]]:
        """The stored tensor, by number, and its share, for each projection.

        `is_apart`: each projection has a tensor of its own; else one has all of them, in order.
        """
        if is_apart:
            return list(enumerate(self.outputs))
        total, offset, sections = sum(share.size for share in self.outputs), 0, []
        if all(share.is_whole for share in self.outputs):
            return [(0, whole(total))]
        for share in self.outputs:
            sections.append((0, Share(offset + share.start, offset + share.stop, total)))
            offset += share.size
        return sections


def undivided(in_features: int, out_features: Sequence[int]) -> Division:
    return Division(tuple(whole(size) for size in out_features), whole(in_features))


def vocabulary_share(vocab_size: int, group: DeviceGroup) -> Share:
    """Blocks of one size, but for the last."""
    block = -(-vocab_size // group.size)
    start = min(group.rank * block, vocab_size)
    return Share(start, min(start + block, vocab_size), vocab_size)
