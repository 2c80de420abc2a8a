"""Gemma 3, text: norms before and after attention and MLP, scaled by 1 + w, and scaled embeddings.

Layers with a window and without have positions of their own; the configuration says which are which.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.models.attention.paged import PagedKVCache
from engine.models.decoder import Attention, CausalLM, GatedMLP
from engine.models.decoder_config import DecoderConfig
from engine.models.family_configs import Gemma3Config
from engine.models.inputs import StepInputs
from engine.models.layers.embedding import Embedding
from engine.models.layers.norm import HeadNorm, RMSNorm
from engine.models.layers.rope import Rotation
from engine.models.layers.scaled_embedding import ScaledEmbedding

_OFFSET = 1.0  # of the norms' weights


class SandwichLayer(nn.Module):
    """Attention, then the MLP, each with a norm before it and another before the residual connection."""

    def __init__(self, config: DecoderConfig, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm, self.post_attention_layernorm = _norm(config), _norm(config)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = _norm(config), _norm(config)

    def forward(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        inputs: StepInputs,
        cache: PagedKVCache,
        rotation: Rotation,
    ) -> torch.Tensor:
        """As DecoderLayer's."""
        attended = self.self_attn(self.input_layernorm(x, delta), inputs, cache, rotation)
        before_mlp = self.pre_feedforward_layernorm(x, self.post_attention_layernorm(attended))
        return self.post_feedforward_layernorm(self.mlp(before_mlp))  # type: ignore[no-any-return]


class Gemma3ForCausalLM(CausalLM):
    config: Gemma3Config

    @classmethod
    def make_embedding(cls, config: DecoderConfig) -> Embedding:
        return ScaledEmbedding(config.vocab_size, config.hidden_size, config.hidden_size**0.5)

    @classmethod
    def make_attention(cls, config: DecoderConfig, layer: int) -> Attention:
        spec = config.attention_specs[layer]
        return Attention(config, layer, qk_norm=HeadNorm.of(spec, config.rms_norm_eps, offset=_OFFSET))

    @classmethod
    def make_mlp(cls, config: DecoderConfig, layer: int) -> GatedMLP:
        return GatedMLP(config.hidden_size, config.intermediate_size, "gelu_tanh")

    @classmethod
    def make_layer(cls, config: DecoderConfig, layer: int) -> nn.Module:
        return SandwichLayer(config, cls.make_attention(config, layer), cls.make_mlp(config, layer))

    @classmethod
    def make_norm(cls, config: DecoderConfig) -> RMSNorm:
        return _norm(config)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits, cap = super().logits(hidden), self.config.final_logit_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _norm(config: DecoderConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.rms_norm_eps, offset=_OFFSET)
