"""Divides a model: each rank builds it with its share of the heads, and reads its share of the weights.

A layer's share follows from its two sizes, in the whole model and in the rank's. So a family needs nothing of
its own; what has one size in both is held by every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from engine.errors import UnsupportedModel
from engine.models.decoder import CausalLM
from engine.models.decoder_config import DecoderConfig
from engine.models.divisible import check_divisible, share_of
from engine.models.layers.division import DeviceGroup
from engine.models.layers.embedding import Embedding
from engine.models.layers.experts import MixtureOfExperts
from engine.models.layers.linear import Linear
from engine.models.layers.norm import RMSNorm
from engine.models.layers.weights import WeightedLayer

_HEAD = "lm_head"
_LayerT = TypeVar("_LayerT", bound=WeightedLayer)


def build_share(
    make_model: Callable[[DecoderConfig], CausalLM], config: DecoderConfig, group: DeviceGroup
) -> CausalLM:
    """This rank's share of a model, without weights. Raises ConfigError and UnsupportedModel."""
    check_divisible(config, group.size)
    model, whole = make_model(share_of(config, group.size)), dict(make_model(config).named_modules())
    mixtures = tuple(f"{name}." for name, layer in model.named_modules() if _divides_experts(layer, group))
    for name, layer in model.named_modules():
        if isinstance(layer, Linear) and name == _HEAD:
            layer.divide_vocabulary(group)
        elif isinstance(layer, Linear):
            layer.divide(_same(whole[name], Linear), group, adds_up=not name.startswith(mixtures))
        elif isinstance(layer, Embedding):
            layer.divide(group)
        elif isinstance(layer, RMSNorm):
            layer.divide(_same(whole[name], RMSNorm), group)
        elif isinstance(layer, WeightedLayer):
            _check_whole(name, layer, _same(whole[name], WeightedLayer), config)
    return model


def _divides_experts(layer: nn.Module, group: DeviceGroup) -> bool:
    if isinstance(layer, MixtureOfExperts):
        layer.divide(group)
        return True
    return False


def _check_whole(name: str, layer: WeightedLayer, whole: WeightedLayer, config: DecoderConfig) -> None:
    """A layer that every rank holds must not depend on a share's size."""
    if layer.part_shapes() != whole.part_shapes():
        raise UnsupportedModel(
            f"{config.architecture} can't be divided among several devices yet: its layer {name} would have "
            "to be divided as well. Use --tensor-parallel-size 1.",
            advice=None,
        )


def _same(module: nn.Module, kind: type[_LayerT]) -> _LayerT:
    if not isinstance(module, kind):
        raise TypeError(f"{module} isn't {kind}: the share of a model must have the whole one's layers.")
    return module
