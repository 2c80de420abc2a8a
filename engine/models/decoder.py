"""The decoder that most families share: layers of grouped-query attention and a gated MLP, and a head.

Runs on flat tokens [T, hidden]: only the attention cache knows which token belongs to which sequence.

A family is a subclass of CausalLM that overrides the `make_…` methods of the parts that differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

from engine.models.activations import Activation
from engine.models.attention.paged import PagedKVCache
from engine.models.attention.spec import AttentionSpec
from engine.models.decoder_config import DecoderConfig
from engine.models.inputs import StepInputs
from engine.models.layers.embedding import Embedding
from engine.models.layers.linear import Linear
from engine.models.layers.norm import HeadNorm, RMSNorm
from engine.models.layers.rope import LayerRopes, Rotation
from engine.models.operators import find_operators
from engine.models.state.spec import StateSpec


class Attention(nn.Module):
    """Self-attention with fused query, key and value projections."""

    def __init__(self, config: DecoderConfig, layer: int, *, qk_norm: HeadNorm | None = None) -> None:
        super().__init__()
        self._layer = layer
        spec = config.attention_specs[layer]
        self._head_dim = spec.head_dim
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.qkv_proj = Linear(config.hidden_size, (q_size, kv_size, kv_size), bias=config.qkv_bias)
        self.o_proj = Linear(q_size, (config.hidden_size,), bias=config.o_bias)
        self.qk_norm = qk_norm

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values side by side: [T, hidden] → [T, sum of their sizes]."""
        return self.qkv_proj(x)  # type: ignore[no-any-return]

    def forward(
        self,
        x: torch.Tensor,
        inputs: StepInputs,
        cache: PagedKVCache,
        rotation: Rotation,
    ) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        heads = self.project(x).view(x.shape[0], -1, self._head_dim)  # [T, q + k + v heads, head_dim]
        queries = cache.operators.rotate_and_store(
            heads,
            None if self.qk_norm is None else self.qk_norm.weight,
            rotation.cos,
            rotation.signed_sin,
            cache.inputs_of(self._layer, inputs).slots,
            cache.keys[self._layer][0],
            cache.values[self._layer][0],
            eps=0.0 if self.qk_norm is None else self.qk_norm.eps,
        )
        return self.o_proj(cache.attend(self._layer, queries, inputs))  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up fused."""

    def __init__(
        self, hidden_size: int, size: int, activation: Activation = "silu", *, bias: bool = False
    ) -> None:
        super().__init__()
        self._activation = activation
        self.gate_up_proj = Linear(hidden_size, (size, size), bias=bias)
        self.down_proj = Linear(size, (hidden_size,), bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        operators = find_operators(x.device.type, x.dtype)
        gated = operators.activate_and_multiply(self.gate_up_proj(x), self._activation)
        return self.down_proj(gated)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention, then the MLP, each with a norm before it and a residual connection."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, make_norm: Callable[[], RMSNorm]) -> None:
        super().__init__()
        self.input_layernorm = make_norm()
        self.self_attn = attention
        self.post_attention_layernorm = make_norm()
        self.mlp = mlp

    def forward(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        inputs: StepInputs,
        cache: PagedKVCache,
        rotation: Rotation,
    ) -> torch.Tensor:
        """The MLP's output, which the next layer adds to x: [T, hidden].

        `delta` is the previous layer's such output; x is changed in place.
        """
        attended = self.self_attn(self.input_layernorm(x, delta), inputs, cache, rotation)
        return self.mlp(self.post_attention_layernorm(x, attended))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding, layers, final norm. Its attributes are named like the checkpoint's tensors."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        embedding: Embedding,
        make_layer: Callable[[DecoderConfig, int], nn.Module],
        norm: RMSNorm,
    ) -> None:
        super().__init__()
        self.attention_specs = config.attention_specs
        self.embed_tokens = embedding
        self.layers = nn.ModuleList(make_layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = norm

    def forward(self, inputs: StepInputs, cache: PagedKVCache, ropes: LayerRopes) -> torch.Tensor:
        """The hidden states of the sampled rows: [S, hidden]."""
        x = self.embed_tokens(inputs.token_ids)
        delta: torch.Tensor | None = None
        for layer, rotation in zip(self.layers, ropes.rotations(inputs.positions), strict=True):
            delta = layer(x, delta, inputs, cache, rotation)
        if inputs.sampled_rows is not None:
            x, delta = x[inputs.sampled_rows], None if delta is None else delta[inputs.sampled_rows]
        return self.norm(x, delta)  # type: ignore[no-any-return]


def make_ropes(config: DecoderConfig, *, dtype: torch.dtype, device: torch.device) -> LayerRopes:
    longest = config.longest_sequence
    return LayerRopes(config.ropes, config.head_dim, longest=longest, dtype=dtype, device=device)


class CausalLM(nn.Module):
    """A decoder with its head, as Llama has it. Subclasses define what is specific to their family."""

    FUSED: ClassVar[dict[str, tuple[str, ...]]] = {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
        "qk_norm": ("q_norm", "k_norm"),
    }
    """Our layer's name → the checkpoint's names of its parts, in order."""
    UNUSED: ClassVar[tuple[str, ...]] = ()

    state_specs: tuple[StateSpec, ...] = ()  # of layers that carry a state beside attention

    def __init__(self, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        self.model = self.make_decoder(config)
        self.lm_head = Linear(config.hidden_size, (config.vocab_size,))
        self._ropes = make_ropes(config, dtype=dtype, device=device)

    @classmethod
    def make_decoder(cls, config: DecoderConfig) -> Decoder:
        """Its layers, which the family's embedding models and classifiers have as well."""
        return Decoder(
            config,
            embedding=cls.make_embedding(config),
            make_layer=cls.make_layer,
            norm=cls.make_norm(config),
        )

    @classmethod
    def make_embedding(cls, config: DecoderConfig) -> Embedding:
        return Embedding(config.vocab_size, config.hidden_size)

    @classmethod
    def make_layer(cls, config: DecoderConfig, layer: int) -> nn.Module:
        return DecoderLayer(
            cls.make_attention(config, layer), cls.make_mlp(config, layer), lambda: cls.make_norm(config)
        )

    @classmethod
    def make_attention(cls, config: DecoderConfig, layer: int) -> nn.Module:
        return Attention(config, layer)

    @classmethod
    def make_mlp(cls, config: DecoderConfig, layer: int) -> nn.Module:
        return GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    @classmethod
    def make_norm(cls, config: DecoderConfig) -> RMSNorm:
        return RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def attention_specs(self) -> tuple[AttentionSpec, ...]:
        return self.model.attention_specs

    def shared_weights(self) -> dict[str, str]:
        """Layers that are filled from another layer's tensors: name → the name it shares."""
        return {"lm_head": "model.embed_tokens"} if self.config.tie_word_embeddings else {}

    def forward(self, inputs: StepInputs, cache: PagedKVCache) -> torch.Tensor:
        """The hidden states of the sampled rows, [S, hidden]; stores the step's keys and values."""
        return self.model(inputs, cache, self._ropes)  # type: ignore[no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → [S, vocab_size], in the model's dtype."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]
