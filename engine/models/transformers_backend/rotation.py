"""Rotary embeddings whose frequencies depend on how long a text is: fixed for the longest that is served.

Transformers chooses them anew for each batch. That would rotate the queries of a short text by what a longer
one beside it needs, and differently from its own keys, which were rotated before the text grew.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

_CHANGING = ("dynamic", "longrope")


def fix_rotation(model: PreTrainedModel, longest: int) -> None:
    for module, changing in _changing(model):
        for layer_type in changing:
            options: dict[str, Any] = {} if layer_type is None else {"layer_type": layer_type}
            last = torch.tensor([[longest - 1]], device=model.device)
            module(torch.zeros(1, 1, 1, device=model.device), last, **options)
    keep_rotation(model)


def keep_rotation(model: PreTrainedModel) -> None:
    """With the frequencies that it has now."""
    for module, _ in _changing(model):
        plain = inspect.unwrap(type(module).forward)  # without the part that chooses the frequencies
        object.__setattr__(module, "forward", MethodType(plain, module))


def _changing(model: PreTrainedModel) -> Iterator[tuple[nn.Module, list[str | None]]]:
    """Modules that choose, and for which types of layers."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        by_layer_type = kinds if isinstance(kinds, dict) else {None: kinds}
        if changing := [layer_type for layer_type, kind in by_layer_type.items() if kind in _CHANGING]:
            yield module, changing
