"""ModernBERT (Warner et al. 2024): pre-norm layers, rotary positions, local attention in most layers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from engine.models.attention.flat import FlatInputs, Reach
from engine.models.encoder_config import EncoderConfig
from engine.models.encoder_layers import (
    ClassificationHead,
    EncoderModel,
    Intermediate,
    Rotations,
    SelfAttention,
    Surroundings,
)
from engine.models.layers.embedding import Embedding
from engine.models.layers.layer_norm import LayerNorm
from engine.models.layers.linear import Linear


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tok_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.norm = _norm(config)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.tok_embeddings(token_ids))  # type: ignore[no-any-return]


class Attention(SelfAttention):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.Wo = Linear(
            config.hidden_size, (config.hidden_size,), bias=config.attention_bias, packs_float32=True
        )

    def forward(self, x: torch.Tensor, around: Surroundings) -> torch.Tensor:
        return self.Wo(super().forward(x, around))  # type: ignore[no-any-return]


class FeedForward(Intermediate):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.Wo = Linear(
            config.intermediate_size, (config.hidden_size,), bias=config.down_bias, packs_float32=True
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.Wo(super().forward(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        # The embeddings, which the first layer reads, are normalised already.
        self.attn_norm = _norm(config) if layer else nn.Identity()
        self.attn = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = FeedForward(config)

    def forward(self, x: torch.Tensor, around: Surroundings) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        x = x + self.attn(self.attn_norm(x), around)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class ModernBert(EncoderModel):
    UNUSED: ClassVar[tuple[str, ...]] = ("classifier.", "decoder.")

    def __init__(
        self, config: EncoderConfig, *, num_labels: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`num_labels` None: embeddings only."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = _norm(config)
        self.classifier = (
            None if num_labels is None else ClassificationHead(config, num_labels, has_norm=True)
        )
        self._rotations = Rotations(config, dtype=dtype, device=device)

    def forward(self, inputs: FlatInputs) -> torch.Tensor:
        """The last layer's output of every token, normalised: [T, hidden]."""
        rotations = self._rotations.at(inputs.positions)
        x = self.embeddings(inputs.token_ids)
        for layer, theta, window in zip(
            self.layers, self.config.rope_thetas, self.config.windows, strict=True
        ):
            x = layer(x, Surroundings(inputs.runs, Reach(window, window), rotate=rotations[theta]))
        return self.final_norm(x)  # type: ignore[no-any-return]


def _norm(config: EncoderConfig) -> LayerNorm:
    return LayerNorm(config.hidden_size, config.layer_norm_eps, bias=config.norm_bias)
