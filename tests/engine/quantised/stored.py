"""Tensors in memory as a TensorSource, which records what was read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine.models.quantised.source import DequantisedSource
from engine.models.tensor_source import ALL


class Stored:
    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.num_read = 0  # values

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        tensor = self._tensors[name]
        if tensor.dim():
            tensor = tensor[rows]
        if tensor.dim() > 1:
            tensor = tensor[:, columns]
        self.num_read += tensor.numel()
        return tensor.clone()


def parts_of(size: int, border: int) -> list[slice]:
    """Parts of a dimension: all, none, one element, and parts that cross or touch a border between groups."""
    return [
        ALL,
        slice(0, 0),
        slice(0, 1),
        slice(size - 1, None),
        slice(max(0, border - 1), border + 1),
        slice(border, None),
        slice(1, size - 1),
    ]


def assert_reads(
    source: DequantisedSource, name: str, reference: Sequence[Sequence[float]], borders: tuple[int, int]
) -> None:
    """`name` is the reference, in all of its parts, to 1e-3 of the largest value."""
    expected = torch.tensor(reference)
    assert source.shape(name) == tuple(expected.shape)
    bound = 1e-3 * float(expected.abs().max())
    for rows in parts_of(expected.shape[0], borders[0]):
        for columns in parts_of(expected.shape[1], borders[1]):
            part = source.tensor(name, rows=rows, columns=columns)
            assert part.dtype == torch.float32
            assert part.shape == expected[rows, columns].shape, (rows, columns)
            assert torch.all((part - expected[rows, columns]).abs() <= bound), (rows, columns)
