"""Finds the modules that carry a state from token to token: runs the model with transformers' own cache.

What updates a layer's convolution or recurrent state there is such a module, whatever its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from engine.errors import UnsupportedModel

_UPDATES = ("update_conv_state", "update_recurrent_state")


@dataclass(frozen=True, slots=True)
class StateCall:
    """How the model calls a module that carries a state."""

    layer: int  # the module's index in transformers' cache
    num_states: int  # of either kind
    cache_argument: str | int  # its name, or its place


@dataclass(slots=True)
class _Recording:
    """Modules by name; those that run now, with their cache's argument, innermost last."""

    running: list[tuple[str, str | int | None]] = field(default_factory=list)
    found: dict[str, StateCall] = field(default_factory=dict)

    def note(self, layer: int, num_states: int) -> None:
        name, argument = next((n, a) for n, a in reversed(self.running) if a is not None)
        call = self.found.setdefault(name, StateCall(layer, num_states, argument))
        if call.layer != layer:
            raise UnsupportedModel(f"{name} carries the states of several layers, each of its own.")


def find_states(
    model: PreTrainedModel, token_ids: torch.Tensor, positions: torch.Tensor
) -> Mapping[str, StateCall]:
    """By module's name. Raises UnsupportedModel, and whatever the model's code raises."""
    recording = _Recording()
    with _modules_noted(model, recording), _updates_noted(recording):
        model.base_model(input_ids=token_ids, position_ids=positions, use_cache=True)
    return recording.found


@contextmanager
def _modules_noted(model: nn.Module, recording: _Recording) -> Iterator[None]:
    handles: list[RemovableHandle] = []

    def enter(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recording.running.append((name, _cache_argument(args, kwargs)))

    def leave(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        recording.running.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cache_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | int | None:
    named = [*enumerate(args), *kwargs.items()]
    return next((name for name, value in named if isinstance(value, Cache)), None)


@contextmanager
def _updates_noted(recording: _Recording) -> Iterator[None]:
    originals = {name: getattr(Cache, name) for name in _UPDATES}

    def noting(name: str) -> Any:
        def update(self: Cache, states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            recording.note(layer_idx, self.layers[layer_idx].number_of_states)
            return originals[name](self, states, layer_idx, *args, **kwargs)

        return update

    for name in _UPDATES:
        setattr(Cache, name, noting(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Cache, name, original)
