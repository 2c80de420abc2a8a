"""Granite: embeddings, attention scores, residual branches and logits are multiplied by constants."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from engine.models.attention.paged import PagedKVCache
from engine.models.decoder import CausalLM, DecoderLayer
from engine.models.decoder_config import DecoderConfig
from engine.models.family_configs import GraniteConfig
from engine.models.inputs import StepInputs
from engine.models.layers.embedding import Embedding
from engine.models.layers.rope import Rotation
from engine.models.layers.scaled_embedding import ScaledEmbedding


class GraniteLayer(DecoderLayer):
    """What attention and MLP add to the residual is multiplied by `multiplier`."""

    multiplier = 1.0

    def forward(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        inputs: StepInputs,
        cache: PagedKVCache,
        rotation: Rotation,
    ) -> torch.Tensor:
        attended = self.self_attn(self.input_layernorm(x, delta), inputs, cache, rotation)
        mixed: torch.Tensor = self.mlp(self.post_attention_layernorm(x, attended.mul_(self.multiplier)))
        return mixed.mul_(self.multiplier)


class GraniteForCausalLM(CausalLM):
    config: GraniteConfig

    @classmethod
    def make_embedding(cls, config: DecoderConfig) -> Embedding:
        scale = cast("GraniteConfig", config).embedding_multiplier
        return ScaledEmbedding(config.vocab_size, config.hidden_size, scale)

    @classmethod
    def make_layer(cls, config: DecoderConfig, layer: int) -> nn.Module:
        made = GraniteLayer(
            cls.make_attention(config, layer), cls.make_mlp(config, layer), lambda: cls.make_norm(config)
        )
        made.multiplier = cast("GraniteConfig", config).residual_multiplier
        return made

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden).div_(self.config.logits_scaling)
