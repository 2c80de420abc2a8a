"""Transformers' attention interface, implemented by the engine's KV cache.

Each attention module of a model has a `Place`, which tells its layer in the cache and leads to the step that
is running: so nothing has to pass through the model's own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from engine.models.attention.paged import PagedKVCache
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs

NAME = "berth"  # transformers builds no mask for an implementation that registers none
_PLACE = "_berth_place"


@dataclass(slots=True)
class Step:
    """What the model's attention modules work with; set for the time of a step."""

    inputs: StepInputs | None = None
    cache: PagedKVCache | None = None


@dataclass(frozen=True, slots=True)
class Place:
    layer: int
    spec: AttentionSpec
    step: Step


def assign_place(module: nn.Module, place: Place) -> None:
    object.__setattr__(module, _PLACE, place)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    s_aux: torch.Tensor | None = None,
    **facts: Any,  # the specification has them
) -> tuple[torch.Tensor, None]:
    """[1, heads, T, head_dim] and twice [1, kv_heads, T, …] → [1, T, heads, the values' head_dim].

    Outside of a step each token attends to itself alone.
    """
    place: Place | None = getattr(module, _PLACE, None)
    if place is None or place.step.inputs is None or place.step.cache is None:
        return _attend_to_itself(query, key, value), None
    inputs, cache, spec = place.step.inputs, place.step.cache, place.spec
    value_dim = value.shape[-1]
    queries, keys, values = (_padded(x[0].transpose(0, 1), spec.head_dim) for x in (query, key, value))
    cache.store(place.layer, keys, values, inputs)
    attended = cache.attend(place.layer, queries.contiguous(), inputs, s_aux if spec.has_sinks else None)
    attended = attended.view(1, queries.shape[0], spec.num_heads, spec.head_dim)
    return attended[..., :value_dim].contiguous(), None


def _attend_to_itself(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A token's own value, by a factor of its query, its key and, as they are rotated, its position."""
    group = query.shape[1] // key.shape[1]
    turned = key.roll(1, dims=-1).repeat_interleave(
        group, dim=1
    )  # a product with the key itself has no position
    score = (query * turned).mean(dim=-1, keepdim=True)
    return (value.repeat_interleave(group, dim=1) * score.sigmoid()).transpose(1, 2).contiguous()


def _padded(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[T, heads, head_dim], filled up with zeros, which change no product: values may have another size."""
    return x if x.shape[-1] == head_dim else F.pad(x, (0, head_dim - x.shape[-1]))


AttentionInterface.register(NAME, attend)
