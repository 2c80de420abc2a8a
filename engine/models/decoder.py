"""The decoder that Qwen3 and Llama share: pre-norm layers of grouped-query attention and a gated MLP.

Runs on flat tokens [T, hidden]: only the attention cache knows which token belongs to which sequence.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from engine.models.attention.paged import AttentionShape, PagedKVCache
from engine.models.decoder_config import DecoderConfig
from engine.models.inputs import StepInputs
from engine.models.layers.embedding import Embedding
from engine.models.layers.linear import Linear
from engine.models.layers.norm import HeadNorm, RMSNorm
from engine.models.layers.rope import LayerRopes, RotaryEmbedding, Rotation
from engine.models.operators import Operators, find_operators


class Attention(nn.Module):
    """Self-attention with fused query, key and value projections."""

    def __init__(self, config: DecoderConfig, layer: int, *, has_head_norm: bool) -> None:
        super().__init__()
        self._layer = layer
        self._num_heads = config.num_attention_heads
        self._num_rotated = config.num_attention_heads + config.num_key_value_heads
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
        rope: RotaryEmbedding,
        rotation: Rotation,
    ) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        heads = self.qkv_proj(x).view(x.shape[0], -1, self._head_dim)  # [T, q + k + v heads, head_dim]
        if cache.operators is not None and not rope.is_partial:
            self._rotate_and_store(cache.operators, heads, inputs, cache, rotation)
            return self.o_proj(cache.attend(self._layer, heads[:, : self._num_heads], inputs))  # type: ignore[no-any-return]
        rotated = heads[:, : self._num_rotated]
        if self.qk_norm is not None:
            rotated = self.qk_norm(rotated)
        rotated = rope.apply(rotated, rotation)
        cache.store(self._layer, rotated[:, self._num_heads :], heads[:, self._num_rotated :], inputs)
        return self.o_proj(cache.attend(self._layer, rotated[:, : self._num_heads], inputs))  # type: ignore[no-any-return]

    def _rotate_and_store(
        self,
        operators: Operators,
        heads: torch.Tensor,
        inputs: StepInputs,
        cache: PagedKVCache,
        rotation: Rotation,
    ) -> None:
        """Everything between the projections and attention, in one pass; the queries stay in `heads`."""
        operators.rotate_and_store(
            heads,
            None if self.qk_norm is None else self.qk_norm.weight,
            rotation.cos,
            rotation.signed_sin,
            inputs.slots,
            cache.keys[self._layer][0],
            cache.values[self._layer][0],
            eps=0.0 if self.qk_norm is None else self.qk_norm.eps,
        )


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up fused."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self._size = config.intermediate_size
        self.gate_up_proj = Linear(config.hidden_size, (self._size, self._size))
        self.down_proj = Linear(self._size, (config.hidden_size,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        gate_up = self.gate_up_proj(x)
        if (operators := find_operators(x.device.type, x.dtype)) is not None:
            return self.down_proj(operators.silu_and_multiply(gate_up))  # type: ignore[no-any-return]
        gate, up = gate_up[:, : self._size], gate_up[:, self._size :]
        return self.down_proj(F.silu(gate).mul_(up))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention, then the MLP, each with a norm before it and a residual connection."""

    def __init__(self, config: DecoderConfig, layer: int, *, has_head_norm: bool) -> None:
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
        rope: RotaryEmbedding,
        rotation: Rotation,
    ) -> torch.Tensor:
        """The MLP's output, which the next layer adds to x: [T, hidden].

        `delta` is the previous layer's such output; x is changed in place.
        """
        attended = self.self_attn(self.input_layernorm(x, delta), inputs, cache, rope, rotation)
        return self.mlp(self.post_attention_layernorm(x, attended))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding, layers, final norm. Its attributes are named like the checkpoint's tensors."""

    def __init__(self, config: DecoderConfig, *, has_head_norm: bool) -> None:
        super().__init__()
        self.attention_shape = AttentionShape(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            num_layers=config.num_hidden_layers,
        )
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, has_head_norm=has_head_norm)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, inputs: StepInputs, cache: PagedKVCache, ropes: LayerRopes) -> torch.Tensor:
        """The hidden states of the sampled rows: [S, hidden]."""
        x = self.embed_tokens(inputs.token_ids)
        delta: torch.Tensor | None = None
        for layer, (rope, rotation) in zip(self.layers, ropes.rotations(inputs.positions), strict=True):
            delta = layer(x, delta, inputs, cache, rope, rotation)
        if inputs.sampled_rows is not None:
            x, delta = x[inputs.sampled_rows], None if delta is None else delta[inputs.sampled_rows]
        return self.norm(x, delta)  # type: ignore[no-any-return]


def make_ropes(config: DecoderConfig, *, dtype: torch.dtype, device: torch.device) -> LayerRopes:
    longest = config.longest_sequence
    return LayerRopes(config.ropes, config.head_dim, longest=longest, dtype=dtype, device=device)


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
        return Decoder(config, has_head_norm=cls.HAS_HEAD_NORM)

    @property
    def attention_shape(self) -> AttentionShape:
        return self.model.attention_shape

    def shared_weights(self) -> dict[str, str]:
        """Layers that are filled from another layer's tensors: name → the name it shares."""
        return {"lm_head": "model.embed_tokens"} if self.config.tie_word_embeddings else {}

    def forward(self, inputs: StepInputs, cache: PagedKVCache) -> torch.Tensor:
        """The hidden states of the sampled rows, [S, hidden]; stores the step's keys and values."""
        return self.model(inputs, cache, self._ropes)  # type: ignore[no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → [S, vocab_size], in the model's dtype."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]
