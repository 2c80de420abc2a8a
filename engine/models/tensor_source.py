"""Where a model's weights come from: tensors by the names that the model's modules give them.

A source hides how a checkpoint stores them: in several files, under other names, or quantised.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

ALL = slice(None)


class TensorSource(Protocol):
    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors, such as `model.layers.0.mlp.down_proj.weight`."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        """The tensor, or a part of its first two dimensions, of which no more is read than needed.

        On the CPU, in the type that it is stored in; of a quantised one, in float32.
        """
        ...


class ScaledWeight(Protocol):
    """A matrix that is stored in 8 bits, with a scale for each row, and meant to be multiplied like that."""

    @property
    def dtype(self) -> torch.dtype: ...

    def stored(self, rows: slice, columns: slice) -> torch.Tensor: ...

    def scales(self, rows: slice) -> torch.Tensor:
        """float32 [rows, 1]."""
        ...


@runtime_checkable
class HasScaledWeights(Protocol):
    """A source that dequantises, and also gives matrices as they are stored."""

    def scaled(self, name: str) -> ScaledWeight | None: ...


def scaled_weight(source: TensorSource, name: str) -> ScaledWeight | None:
    return source.scaled(name) if isinstance(source, HasScaledWeights) else None
