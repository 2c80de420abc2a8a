"""OLMo 2 and 3: norms after attention and MLP, and over all heads' queries and keys at once."""

from __future__ import annotations

import torch
from torch import nn

from engine.models.attention.paged import PagedKVCache
from engine.models.decoder import Attention, CausalLM
from engine.models.decoder_config import DecoderConfig
from engine.models.inputs import StepInputs
from engine.models.layers.norm import RMSNorm
from engine.models.layers.rope import Rotation


class OlmoAttention(Attention):
    """Normalises queries and keys across their heads before they are rotated."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        spec = config.attention_specs[layer]
        sizes = [count * spec.head_dim for count in (spec.num_heads, spec.num_kv_heads)]
        self._sizes = [*sizes, sizes[1]]
        self.q_norm, self.k_norm = (RMSNorm(size, config.rms_norm_eps) for size in sizes)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = torch.split(super().project(x), self._sizes, dim=-1)
        normalised = self.q_norm(queries.contiguous()), self.k_norm(keys.contiguous())
        return torch.cat((*normalised, values), dim=-1)


class PostNormLayer(nn.Module):
    """Attention, then the MLP, each with a norm after it, before the residual connection."""

    def __init__(self, config: DecoderConfig, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = mlp
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        inputs: StepInputs,
        cache: PagedKVCache,
        rotation: Rotation,
    ) -> torch.Tensor:
        """As DecoderLayer's."""
        if delta is not None:
            x.add_(delta)
        x.add_(self.post_attention_layernorm(self.self_attn(x, inputs, cache, rotation)))
        return self.post_feedforward_layernorm(self.mlp(x))  # type: ignore[no-any-return]


class OlmoForCausalLM(CausalLM):
    @classmethod
    def make_attention(cls, config: DecoderConfig, layer: int) -> Attention:
        return OlmoAttention(config, layer)

    @classmethod
    def make_layer(cls, config: DecoderConfig, layer: int) -> nn.Module:
        return PostNormLayer(config, cls.make_attention(config, layer), cls.make_mlp(config, layer))
