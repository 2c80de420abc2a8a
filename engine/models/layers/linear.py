"""Linear layers, one or several of the checkpoint's projections fused into one matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from engine.models.layers.linear_method import LinearMethod, MatrixTensor, PlainLinear, choose_method
from engine.models.layers.weights import Shape, StoredLayer, WeightedLayer


class Linear(WeightedLayer):
    """y = x Wᵀ + b, with W [sum(out_features), in_features].

    `out_features` has one entry per projection that is fused here. The checkpoint stores each one apart, or
    all in one tensor, one below the other.
    """

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        *,
        bias: bool = False,
        packs_float32: bool = False,
    ) -> None:
        """`packs_float32`: pack on a CPU in float32 too, which pays off for many rows at a time (twice as
        fast on AMD); a decoder's few rows gain nothing, and its results would depend on the number of rows.
        """
        super().__init__()
        self.in_features = in_features
        self.out_features = tuple(out_features)
        self._has_bias = bias
        self._packs_float32 = packs_float32
        self._use(PlainLinear())

    def part_shapes(self) -> Mapping[str, Sequence[Shape]]:
        """Of projections that are stored apart."""
        return self._shapes(PlainLinear(), self.out_features)

    def wanted(self, stored: StoredLayer) -> Mapping[str, Sequence[Shape]]:
        method = choose_method(stored, packs_float32=self._packs_float32)
        return self._shapes(method, self._stored_features(stored))

    def load_from(self, stored: StoredLayer) -> None:
        method = choose_method(stored, packs_float32=self._packs_float32)
        wanted = method.tensors(self.in_features, sum(self.out_features), bias=self._has_bias)
        method.load({name: _joined(stored, name, tensor) for name, tensor in wanted.items()})
        self._use(method)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in_features] → [T, sum(out_features)]."""
        return self._multiply(x)

    def use_around(self, wrap: Callable[[LinearMethod], LinearMethod]) -> None:
        """Multiply by what `wrap` makes of the loaded method."""
        self._use(wrap(self.method))

    def _use(self, method: LinearMethod) -> None:
        self.method = method
        self._multiply = method.forward  # without a module's hooks, which cost a microsecond each time

    def _stored_features(self, stored: StoredLayer) -> tuple[int, ...]:
        """The output features of each of the checkpoint's projections: one may have all."""
        return self.out_features if len(stored.paths) > 1 else (sum(self.out_features),)

    def _shapes(self, method: LinearMethod, features: Sequence[int]) -> Mapping[str, Sequence[Shape]]:
        projections = [method.tensors(self.in_features, size, bias=self._has_bias) for size in features]
        return {name: [tensors[name].shape for tensors in projections] for name in projections[0]}


def _joined(stored: StoredLayer, name: str, tensor: MatrixTensor) -> torch.Tensor:
    """One tensor of all projections."""
    parts = [stored.load(name, part, dtype=tensor.dtype) for part in range(len(stored.paths))]
    return parts[0] if len(parts) == 1 or tensor.outputs is None else torch.cat(parts, tensor.outputs)
