"""The state of one module in the form in which transformers' code reads and updates it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, LinearAttentionLayer

from engine.models.state.spec import StateSpec, StateTensor
from engine.models.transformers_backend.state_probe import StateCall

_KINDS = ("conv_states", "recurrent_states")


class ModuleState:
    """One cache object, used again in every step: it holds tensors only while the module runs."""

    def __init__(self, call: StateCall) -> None:
        self._num_states = call.num_states
        self._cache = Cache(layers=[self._empty()] * (call.layer + 1))
        self._spec = StateSpec(())
        self._keys: list[tuple[str, int]] = []

    @property
    def spec(self) -> StateSpec:
        """Its tensors are named by their place in a layer of transformers' cache, as `conv_states.0`."""
        return self._spec

    @spec.setter
    def spec(self, spec: StateSpec) -> None:
        self._spec = spec
        self._keys = [
            (kind, int(number)) for kind, _, number in (t.name.partition(".") for t in spec.tensors)
        ]

    def fresh(self) -> Cache:
        """In which the module makes its tensors itself."""
        self._cache.layers = [self._empty()] * len(self._cache.layers)
        return self._cache

    def learn(self) -> list[torch.Tensor]:
        """What the module has put into a fresh cache; from it follows the specification."""
        layer = self._cache.layers[-1]
        found = {
            f"{kind}.{number}": tensor
            for kind in _KINDS
            for number, tensor in getattr(layer, kind).items()
            if tensor is not None
        }
        self.spec = StateSpec(
            tuple(StateTensor(name, tuple(x.shape[1:]), x.dtype) for name, x in found.items())
        )
        return list(found.values())

    def holding(self, parts: Sequence[torch.Tensor], *, continues: bool) -> Cache:
        layer = self._cache.layers[-1]
        for (kind, number), part in zip(self._keys, parts, strict=True):
            getattr(layer, kind)[number] = part
            getattr(layer, f"is_{kind}_initialized")[number] = True
            layer.conv_kernel_size[number] = (
                part.shape[-1] if kind == _KINDS[0] else layer.conv_kernel_size[number]
            )
            layer.has_previous_state[number] = continues
            layer.dtype, layer.device = part.dtype, part.device
        return self._cache

    def release(self) -> None:
        layer = self._cache.layers[-1]
        for kind, number in self._keys:
            getattr(layer, kind)[number] = None

    def _empty(self) -> LinearAttentionLayer:
        return LinearAttentionLayer(number_of_states=self._num_states)
