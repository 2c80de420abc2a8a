"""BERT (Devlin et al. 2018) and its relatives: post-norm encoder layers with bidirectional attention.

RoBERTa, ELECTRA, DistilBERT and MPNet differ little; Nomic BERT, GTE and Jina's models have other positions
and gated feed-forward layers. engine/models/encoder_families.py has what is particular to each.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from engine.models.attention.flat import FlatInputs
from engine.models.encoder_config import EncoderConfig, Positions
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
from engine.models.position_bias import DistanceBuckets, alibi_bias


class Embeddings(nn.Module):
    """The embeddings of tokens, of positions and of token types (first or second text), as far as a model has
    them, summed and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self._first_position = config.first_position
        self._has_positions = config.family.positions in (Positions.LEARNED, Positions.BUCKETS)
        self._num_types = config.type_vocab_size
        self.word_embeddings = Embedding(config.vocab_size, size)
        if self._has_positions:
            self.position_embeddings = Embedding(config.num_positions, size)
        if self._num_types:
            self.token_type_embeddings = Embedding(config.type_vocab_size, size)
        self.LayerNorm = LayerNorm(size, config.layer_norm_eps)

    def forward(self, inputs: FlatInputs) -> torch.Tensor:
        """→ [T, embedding_size]."""
        x = self.word_embeddings(inputs.token_ids)
        if self._has_positions:
            x = x + self.position_embeddings(inputs.positions + self._first_position)
        if self._num_types:
            type_ids = inputs.type_ids if self._num_types > 1 else torch.zeros_like(inputs.type_ids)
            x = x + self.token_type_embeddings(type_ids)
        return self.LayerNorm(x)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A projection, the residual connection past its block, and the norm of their sum."""

    def __init__(self, in_features: int, config: EncoderConfig, *, bias: bool) -> None:
        super().__init__()
        self.dense = Linear(in_features, (config.hidden_size,), bias=bias, packs_float32=True)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        """[T, in_features] and [T, hidden] → [T, hidden]."""
        return self.LayerNorm(self.dense(x) + beside)  # type: ignore[no-any-return]


class EncoderAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Residual(config.hidden_size, config, bias=config.attention_bias)

    def forward(self, x: torch.Tensor, around: Surroundings) -> torch.Tensor:
        return self.output(self.self(x, around), x)  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = EncoderAttention(config)
        self.intermediate = Intermediate(config)
        self.output = Residual(config.intermediate_size, config, bias=config.down_bias)

    def forward(self, x: torch.Tensor, around: Surroundings) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        x = self.attention(x, around)
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class Layers(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if config.family.positions is Positions.BUCKETS:
            self.relative_attention_bias = DistanceBuckets(config.num_attention_heads)
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Encoder(EncoderModel):
    """An encoder, with the classification head of its family if there are labels."""

    UNUSED: ClassVar[tuple[str, ...]] = (
        "embeddings.position_ids",
        "pooler.",
        "classifier.",
        "lm_head.",
        "cls.",
        "vocab_",  # DistilBERT's language head
        "generator_",  # ELECTRA's
        "discriminator_",
    )

    def __init__(
        self, config: EncoderConfig, *, num_labels: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`num_labels` None: embeddings only."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        self.embeddings = Embeddings(config)
        self._has_projection = config.embedding_size != config.hidden_size
        if self._has_projection:
            self.embeddings_project = Linear(config.embedding_size, (config.hidden_size,), bias=True)
        self.encoder = Layers(config)
        self.classifier = None if num_labels is None else ClassificationHead(config, num_labels)
        self._rotations = Rotations(config, dtype=dtype, device=device)

    def forward(self, inputs: FlatInputs) -> torch.Tensor:
        """The last layer's output of every token: [T, hidden]."""
        x = self.embeddings(inputs)
        if self._has_projection:
            x = self.embeddings_project(x)
        around = self._surroundings(inputs)
        for layer in self.encoder.layer:
            x = layer(x, around)
        return x  # type: ignore[no-any-return]

    def _surroundings(self, inputs: FlatInputs) -> Surroundings:
        match self.config.family.positions:
            case Positions.ROTARY:
                [rotate] = self._rotations.at(inputs.positions).values()
                return Surroundings(inputs.runs, rotate=rotate)
            case Positions.ALIBI:
                bias = alibi_bias(self.config.num_attention_heads, inputs.longest, self.device)
                return Surroundings(inputs.runs, bias=bias)
            case Positions.BUCKETS:
                return Surroundings(inputs.runs, bias=self.encoder.relative_attention_bias(inputs.longest))
        return Surroundings(inputs.runs)
