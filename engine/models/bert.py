"""BERT, RoBERTa and XLM-RoBERTa: post-norm encoder layers with bidirectional attention (Devlin et al. 2018).

Runs on flat tokens [T, hidden], without padding. Modules are named like the checkpoints' tensors, whose
prefixes ("bert.", "roberta.") `Encoder.tensor_name` removes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from engine.models.attention.flat import EqualLengths, FlatInputs, attend_both_ways
from engine.models.encoder_config import EncoderActivation, EncoderConfig
from engine.models.layers.embedding import Embedding
from engine.models.layers.head import Head
from engine.models.layers.layer_norm import LayerNorm
from engine.models.layers.linear import Linear

_ACTIVATIONS: dict[EncoderActivation, Callable[[torch.Tensor], torch.Tensor]] = {
    EncoderActivation.GELU: F.gelu,
    EncoderActivation.GELU_TANH: partial(F.gelu, approximate="tanh"),
    EncoderActivation.RELU: F.relu,
    EncoderActivation.SILU: F.silu,
}


class Embeddings(nn.Module):
    """The embeddings of tokens, positions and token types (first or second text), summed and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self._first_position = config.first_position
        self._has_types = config.type_vocab_size > 1
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = Embedding(config.num_positions, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, inputs: FlatInputs) -> torch.Tensor:
        """→ [T, hidden]."""
        type_ids = inputs.type_ids if self._has_types else torch.zeros_like(inputs.type_ids)
        x = self.word_embeddings(inputs.token_ids)
        x = x + self.position_embeddings(inputs.positions + self._first_position)
        return self.LayerNorm(x + self.token_type_embeddings(type_ids))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Queries, keys and values in one product."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self._num_heads = config.num_attention_heads
        self._head_dim = size // config.num_attention_heads
        self.qkv = Linear(size, (size, size, size), bias=True, packs_float32=True)

    def forward(self, x: torch.Tensor, runs: Sequence[EqualLengths]) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        heads = self.qkv(x).view(x.shape[0], 3, self._num_heads, self._head_dim)
        return attend_both_ways(heads[:, 0], heads[:, 1], heads[:, 2], runs)


class Residual(nn.Module):
    """A projection, the residual connection past its block, and the norm of their sum."""

    def __init__(self, in_features: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(in_features, (config.hidden_size,), bias=True, packs_float32=True)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        """[T, in_features] and [T, hidden] → [T, hidden]."""
        return self.LayerNorm(self.dense(x) + beside)  # type: ignore[no-any-return]


class EncoderAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Residual(config.hidden_size, config)

    def forward(self, x: torch.Tensor, runs: Sequence[EqualLengths]) -> torch.Tensor:
        return self.output(self.self(x, runs), x)  # type: ignore[no-any-return]


class Intermediate(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, (config.intermediate_size,), bias=True, packs_float32=True)
        self._activation = _ACTIVATIONS[config.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._activation(self.dense(x))


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = EncoderAttention(config)
        self.intermediate = Intermediate(config)
        self.output = Residual(config.intermediate_size, config)

    def forward(self, x: torch.Tensor, runs: Sequence[EqualLengths]) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        x = self.attention(x, runs)
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class Layers(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class BertPooler(nn.Module):
    """BERT's layer between its first token and a classifier."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Head(config.hidden_size, config.hidden_size, bias=True)


class RobertaClassifier(nn.Module):
    def __init__(self, config: EncoderConfig, num_labels: int) -> None:
        super().__init__()
        self.dense = Head(config.hidden_size, config.hidden_size, bias=True)
        self.out_proj = Head(config.hidden_size, num_labels, bias=True)


class Encoder(nn.Module):
    """An encoder, with the classification head of its family if there are labels."""

    FUSED: ClassVar[dict[str, tuple[str, ...]]] = {"qkv": ("query", "key", "value")}
    UNUSED: ClassVar[tuple[str, ...]] = ("embeddings.position_ids", "pooler.", "lm_head.", "cls.")

    def __init__(
        self, config: EncoderConfig, *, num_labels: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`num_labels` None: embeddings only."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self._has_pooler = config.family.has_pooler
        if num_labels is not None and self._has_pooler:
            self.pooler = BertPooler(config)
            self.classifier: nn.Module = Head(config.hidden_size, num_labels, bias=True)
        elif num_labels is not None:
            self.classifier = RobertaClassifier(config, num_labels)

    @staticmethod
    def tensor_name(stored_name: str) -> str:
        """The model's name for a checkpoint's tensor, whichever task it was saved for."""
        name = re.sub(r"^(bert|roberta)\.", "", stored_name)
        # Checkpoints from TensorFlow name a LayerNorm's tensors like this.
        return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))

    def shared_weights(self) -> dict[str, str]:
        return {}

    def forward(self, inputs: FlatInputs) -> torch.Tensor:
        """The last layer's output of every token: [T, hidden]."""
        x = self.embeddings(inputs)
        for layer in self.encoder.layer:
            x = layer(x, inputs.runs)
        return x  # type: ignore[no-any-return]

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → logits, float32 [S, num_labels]."""
        if self._has_pooler:
            return self.classifier(torch.tanh(self.pooler.dense(pooled)))  # type: ignore[no-any-return]
        head = self.classifier
        return head.out_proj(torch.tanh(head.dense(pooled)))  # type: ignore[no-any-return,operator]
