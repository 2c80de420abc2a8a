"""A linear layer's product with the adapters of a step's sequences added to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from engine.models.layers.linear_method import LinearMethod


@dataclass(frozen=True, slots=True)
class Columns:
    """One of the projections that a layer fuses."""

    outputs: slice  # its columns of the layer's output
    ranks: slice  # its columns of x Aᵀ
    b: torch.Tensor  # [out, rank], multiplied by the adapter's scaling


@dataclass(frozen=True, slots=True)
class LayerAdapter:
    """An adapter's part for one layer."""

    a: torch.Tensor  # [ranks of all projections, in]
    columns: Sequence[Columns]

    @property
    def is_finite(self) -> bool:
        """Waits for the device."""
        return all(bool(one.isfinite().all()) for one in (self.a, *(each.b for each in self.columns)))

    def add_to(self, y: torch.Tensor, x: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Add to these rows of y [T, out] what the adapter makes of those of x [T, in]; None: all rows."""
        reduced = (x if rows is None else x.index_select(0, rows)) @ self.a.T
        for columns in self.columns:
            delta = reduced[:, columns.ranks] @ columns.b.T
            if rows is None:
                y[:, columns.outputs] += delta
            else:
                y[:, columns.outputs].index_add_(0, rows, delta)


@dataclass(slots=True)
class StepAdapters:
    """Which adapters the current step has, and their rows; all adapted layers share it."""

    num_rows: int = 0
    groups: Sequence[tuple[Mapping[str, LayerAdapter], torch.Tensor | None]] = field(default_factory=tuple)


class AdaptedLinear(LinearMethod):
    """Another method's product, and what the step's adapters add to it."""

    def __init__(self, base: LinearMethod, layer: str, step: StepAdapters) -> None:
        super().__init__()
        self.base = base
        self._layer = layer
        self._step = step
        self._multiply = base.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._multiply(x)
        for layers, rows in self._step.groups:
            if (adapter := layers.get(self._layer)) is not None:
                if len(x) != self._step.num_rows:
                    raise ValueError(f"{self._layer} has {len(x)} rows in a step of {self._step.num_rows}.")
                adapter.add_to(y, x, rows)
        return y
