"""The decoder that Qwen3 and Llama share: pre-norm layers of grouped-query attention and a gated MLP.

Runs on flat tokens [T, hidden]: only the attention cache knows which token belongs to which sequence.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from engine.models.attention.paged import PagedKVCache
from engine.models.attention.spec import AttentionSpec
from engine.models.config import ModelConfig
from engine.models.inputs import StepInputs
from engine.models.layers.embedding import Embedding
from engine.models.layers.linear import Linear
from engine.models.layers.norm import HeadNorm, RMSNorm
from engine.models.layers.rope import RotaryEmbedding, Rotation
from engine.models.operators import find_operators


class Attention(nn.Module):
    """Self-attention with fused query, key and value projections."""

    def __init__(self, config: ModelConfig, layer: int, *, has_head_norm: bool) -> None:
        super().__init__()
        self._layer = layer
        self._head_dim = config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.qkv_proj = Linear(config.hidden_size, (q_size, kv_size, kv_size), bias=config.attention_bias)
        self.o_proj = Linear(q_size, (config.hidden_size,), bias=config.attention_bias)
        self.qk_norm = (
            HeadNorm(
                config.head_dim, config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
            )
            if has_head_norm
            else None
        )

    def forward(
        self,
        x: torch.Tensor,
        inputs: StepInputs,
        cache: PagedKVCache,
        rotation: Rotation,
    ) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        heads = self.qkv_proj(x).view(x.shape[0], -1, self._head_dim)  # [T, q + k + v heads, head_dim]
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
    """down(silu(gate(x)) * up(x)), gate and up fused."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.intermediate_size
        self.gate_up_proj = Linear(config.hidden_size, (size, size))
        self.down_proj = Linear(size, (config.hidden_size,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        operators = find_operators(x.device.type, x.dtype)
        return self.down_proj(operators.activate_and_multiply(self.gate_up_proj(x), "silu"))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention, then the MLP, each with a norm before it and a residual connection."""

    def __init__(self, config: ModelConfig, layer: int, *, has_head_norm: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer, has_head_norm=has_head_norm)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)

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

    def __init__(self, config: ModelConfig, *, has_head_norm: bool) -> None:
        super().__init__()
        spec = AttentionSpec(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            scale=config.head_dim**-0.5,
        )
        self.attention_specs = (spec,) * config.num_hidden_layers
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, has_head_norm=has_head_norm)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, inputs: StepInputs, cache: PagedKVCache, rope: RotaryEmbedding) -> torch.Tensor:
        """The hidden states of the sampled rows: [S, hidden]."""
        rotation = rope.rotation(inputs.positions)
        x = self.embed_tokens(inputs.token_ids)
        delta: torch.Tensor | None = None
        for layer in self.layers:
            delta = layer(x, delta, inputs, cache, rotation)
        if inputs.sampled_rows is not None:
            x, delta = x[inputs.sampled_rows], None if delta is None else delta[inputs.sampled_rows]
        return self.norm(x, delta)  # type: ignore[no-any-return]


class CausalLM(nn.Module):
    """A decoder with its head. Subclasses define what is specific to their architecture."""

    FUSED: ClassVar[dict[str, tuple[str, ...]]] = {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
        "qk_norm": ("q_norm", "k_norm"),
    }
    """Our layer's name → the checkpoint's names of its parts, in order."""
    UNUSED: ClassVar[tuple[str, ...]] = ()
    HAS_HEAD_NORM: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        self.model = self.make_decoder(config)
        self.lm_head = Linear(config.hidden_size, (config.vocab_size,))
        self._rope = RotaryEmbedding(config.head_dim, config.rope, dtype=dtype, device=device)

    @classmethod
    def make_decoder(cls, config: ModelConfig) -> Decoder:
        """Its layers, which the family's embedding models and classifiers have as well."""
        return Decoder(config, has_head_norm=cls.HAS_HEAD_NORM)

    @property
    def attention_specs(self) -> tuple[AttentionSpec, ...]:
        return self.model.attention_specs

    def shared_weights(self) -> dict[str, str]:
        """Layers that are filled from another layer's tensors: name → the name it shares."""
        return {"lm_head": "model.embed_tokens"} if self.config.tie_word_embeddings else {}

    def forward(self, inputs: StepInputs, cache: PagedKVCache) -> torch.Tensor:
        """The hidden states of the sampled rows, [S, hidden]; stores the step's keys and values."""
        return self.model(inputs, cache, self._rope)  # type: ignore[no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → [S, vocab_size], in the model's dtype."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]
