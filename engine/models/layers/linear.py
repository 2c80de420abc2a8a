"""Linear layers, one or several of the checkpoint's projections fused into one matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from engine.models.layers.division import (
    DeviceGroup,
    Division,
    Share,
    share_of,
    undivided,
    vocabulary_share,
)
from engine.models.layers.linear_method import LinearMethod, MatrixTensor, PlainLinear, choose_method
from engine.models.layers.weights import Shape, StoredLayer, WeightedLayer
from engine.models.tensor_source import ALL


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
        self._has_bias = self._adds_bias = bias
        self._packs_float32 = packs_float32
        self.division = undivided(in_features, out_features)
        self._finish: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._use(PlainLinear())

    def divide(self, whole: Linear, group: DeviceGroup, *, adds_up: bool = True) -> None:
        """Become this device's share of `whole`, which has the sizes that are stored.

        `adds_up`: whether devices that have shares of the inputs add up their results here.
        """
        outputs = zip(self.out_features, whole.out_features, strict=True)
        self.division = Division(
            tuple(share_of(own, stored, group) for own, stored in outputs),
            share_of(self.in_features, whole.in_features, group),
        )
        if not self.division.inputs.is_whole:
            self._adds_bias &= group.rank == 0  # once, not for each device
            self._finish = group.all_reduce if adds_up else None

    def divide_vocabulary(self, group: DeviceGroup) -> None:
        """Become this device's share of a language head; rank 0 gets all logits."""
        (vocab_size,) = self.out_features
        share = vocabulary_share(vocab_size, group)
        self.division = Division((share,), self.division.inputs)
        num_missing = -(-vocab_size // group.size) - (share.stop - share.start)

        def gather(logits: torch.Tensor) -> torch.Tensor:
            padded = F.pad(logits, (0, num_missing)) if num_missing else logits
            return group.gather(padded)[:, :vocab_size]

        self._finish = gather

    def part_shapes(self) -> Mapping[str, Sequence[Shape]]:
        """Of projections that are stored apart."""
        return self._shapes(PlainLinear(), is_apart=True)

    def wanted(self, stored: StoredLayer) -> Mapping[str, Sequence[Shape]]:
        return self._shapes(self._choose_method(stored), is_apart=len(stored.paths) > 1)

    def load_from(self, stored: StoredLayer) -> None:
        method = self._choose_method(stored)
        sections = self.division.sections(is_apart=len(stored.paths) > 1)
        parts: dict[str, list[torch.Tensor]] = {}
        axes: dict[str, int | None] = {}
        for part, outputs in sections:
            for name, tensor in self._tensors(method, outputs.size).items():
                if name == "bias" and not self._adds_bias:
                    continue
                parts.setdefault(name, []).append(self._read(stored, name, part, tensor, outputs))
                axes[name] = tensor.outputs
        method.load({name: _joined(parts.pop(name), axis) for name, axis in axes.items()})
        self._use(method)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in_features] → [T, sum(out_features)]."""
        product = self._multiply(x)
        return product if self._finish is None else self._finish(product)

    def use_around(self, wrap: Callable[[LinearMethod], LinearMethod]) -> None:
        """Multiply by what `wrap` makes of the loaded method."""
        self._use(wrap(self.method))

    def _use(self, method: LinearMethod) -> None:
        self.method = method
        self._multiply = method.forward  # without a module's hooks, which cost a microsecond each time

    def _choose_method(self, stored: StoredLayer) -> LinearMethod:
        return choose_method(stored, packs_float32=self._packs_float32)

    def _tensors(self, method: LinearMethod, out_features: int) -> Mapping[str, MatrixTensor]:
        return method.tensors(self.division.inputs.size, out_features, bias=self._has_bias)

    def _shapes(self, method: LinearMethod, *, is_apart: bool) -> Mapping[str, Sequence[Shape]]:
        sections = self.division.sections(is_apart=is_apart)
        sizes = {part: outputs.size for part, outputs in sections}
        projections = [self._tensors(method, size) for size in sizes.values()]
        return {name: [tensors[name].shape for tensors in projections] for name in projections[0]}

    def _read(
        self, stored: StoredLayer, name: str, part: int, tensor: MatrixTensor, outputs: Share
    ) -> torch.Tensor:
        """This layer's share of one of a projection's tensors."""
        slices = [ALL, ALL]
        for axis, share in ((tensor.outputs, outputs), (tensor.inputs, self.division.inputs)):
            if axis is not None:
                slices[axis] = share.of(tensor.shape[axis])
        return stored.load(name, part, rows=slices[0], columns=slices[1], dtype=tensor.dtype)


def _joined(parts: list[torch.Tensor], axis: int | None) -> torch.Tensor:
    return parts[0] if len(parts) == 1 or axis is None else torch.cat(parts, axis)
