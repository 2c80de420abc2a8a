"""The interface between layers with weights and the loader: what a layer wants, and how it reads it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import nn

from engine.models.tensor_source import ALL, TensorSource

Shape = tuple[int, ...]


class StoredLayer:
    """What a source has for one layer, under the layer's own names, such as "weight".

    A fused layer consists of several of the checkpoint's layers, its parts: each has such a tensor.
    """

    def __init__(
        self,
        source: TensorSource,
        paths: Sequence[str],
        *,
        device: torch.device,
        dtype: torch.dtype,
        shared: MutableMapping[str, torch.Tensor] | None = None,
    ) -> None:
        """`paths`: the parts' names in the source. `shared`: what layers that share tensors have loaded."""
        self.source = source
        self.paths = tuple(paths)
        self.device = device
        self.dtype = dtype
        self._shared = shared

    def full_name(self, name: str, part: int = 0) -> str:
        """The source's name for one tensor."""
        path = self.paths[part]
        return f"{path}.{name}" if path else name

    def has(self, name: str) -> bool:
        """Whether all parts have it."""
        return all(self.full_name(name, part) in self.source.names for part in range(len(self.paths)))

    def read(self, name: str, part: int = 0, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        """One tensor, or a share of it, as stored; on a CPU it stays mapped from the file."""
        return self.source.tensor(self.full_name(name, part), rows=rows, columns=columns)

    def load(
        self,
        name: str,
        part: int = 0,
        *,
        rows: slice = ALL,
        columns: slice = ALL,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """The same on the model's device, in `dtype` (None: the model's)."""
        key = f"{self.full_name(name, part)} {rows} {columns} {dtype}"
        if self._shared is not None and key in self._shared:
            return self._shared[key]
        stored = self.read(name, part, rows=rows, columns=columns)
        tensor = stored.to(device=self.device, dtype=dtype or self.dtype)
        if self._shared is not None:
            self._shared[key] = tensor
        return tensor


class WeightedLayer(nn.Module):
    """A layer that is loaded from a checkpoint.

    One that takes whole tensors in the model's dtype implements `part_shapes` and `load`. One that reads only
    a share, chooses by what is stored, or casts otherwise, overrides `wanted` and `load_from`. Experts, for
    instance: `stored.has("gate_up_proj")` tells whether they are stacked, [experts, 2 * size, hidden], or
    one by one, "0.gate_proj.weight" and so on; `rows=slice(e, e + 1)` reads one of a stack.
    """

    def part_shapes(self) -> Mapping[str, Sequence[Shape]]:
        """For each tensor's name ("weight", "bias"), the shapes of the parts it is stored in."""
        raise NotImplementedError

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        """Load the parts of one tensor, checked for shape, on the model's device and in its dtype.

        The layer may convert them, and must then drop all references to them.
        """
        raise NotImplementedError

    def wanted(self, stored: StoredLayer) -> Mapping[str, Sequence[Shape]]:
        """As `part_shapes`, for this source: all tensors that must be in it."""
        return self.part_shapes()

    def load_from(self, stored: StoredLayer) -> None:
        """Read what is `wanted`, whose names and shapes have been checked."""
        for name, shapes in self.wanted(stored).items():
            self.load(name, [stored.load(name, part) for part in range(len(shapes))])
