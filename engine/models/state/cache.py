"""The state cache: for each layer that carries a state, a tensor of slots for each of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.models.state.spec import StateSpec


class StateCache:
    """Not zeroed: a sequence's first step reads no state, and memory is used only as slots are written."""

    def __init__(self, specs: Sequence[StateSpec], *, num_slots: int, device: torch.device) -> None:
        self.specs = tuple(specs)
        self.num_slots = num_slots
        self._layers = [
            [torch.empty((num_slots, *t.shape), dtype=t.dtype, device=device) for t in spec.tensors]
            for spec in specs
        ]

    def tensors(self) -> list[torch.Tensor]:
        return [tensor for layer in self._layers for tensor in layer]

    def of(self, layer: int) -> Sequence[torch.Tensor]:
        """[slots, …], in the order of the layer's spec."""
        return self._layers[layer]
