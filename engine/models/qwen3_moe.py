"""Qwen3 with a mixture of experts in place of the MLP of most layers."""

from __future__ import annotations

from typing import cast

from torch import nn

from engine.models.decoder import GatedMLP
from engine.models.decoder_config import DecoderConfig
from engine.models.family_configs import Qwen3MoeConfig
from engine.models.layers.experts import MixtureOfExperts
from engine.models.qwen3 import Qwen3ForCausalLM


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    @classmethod
    def make_mlp(cls, config: DecoderConfig, layer: int) -> nn.Module:
        own = cast("Qwen3MoeConfig", config)  # what its family's reader returns
        if layer not in own.sparse_layers:
            return super().make_mlp(config, layer)
        return MixtureOfExperts(
            own.hidden_size,
            lambda: GatedMLP(own.hidden_size, own.expert_size),
            num_experts=own.num_experts,
            num_chosen=own.num_chosen_experts,
            normalises=own.normalises_weights,
        )
