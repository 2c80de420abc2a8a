"""The layers that encoders share. They run on flat tokens [T, hidden], without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from engine.models.attention.flat import BOTH_WAYS, EqualLengths, Reach, attend_flat
from engine.models.encoder_config import EncoderActivation, EncoderConfig
from engine.models.layers.head import Head
from engine.models.layers.layer_norm import LayerNorm
from engine.models.layers.linear import Linear

ACTIVATIONS: dict[EncoderActivation, Callable[[torch.Tensor], torch.Tensor]] = {
    EncoderActivation.GELU: F.gelu,
    EncoderActivation.GELU_TANH: partial(F.gelu, approximate="tanh"),
    EncoderActivation.RELU: F.relu,
    EncoderActivation.SILU: F.silu,
    EncoderActivation.TANH: torch.tanh,
}


Rotate: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Queries or keys [T, heads, head_dim] → the same, rotated."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a layer's attention needs to know of the batch."""

    runs: Sequence[EqualLengths]
    reach: Reach = BOTH_WAYS
    bias: torch.Tensor | None = None  # see attend_flat
    rotate: Rotate | None = None


class Rotations:
    """Rotary positions (Su et al. 2021), of which a model may have several kinds, by their theta."""

    def __init__(self, config: EncoderConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        exponents = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
        self._frequencies = {
            theta: config.position_scale / theta**exponents for theta in set(config.rope_thetas)
        }

    def at(self, positions: torch.Tensor) -> dict[float, Rotate]:
        """For int64 positions [T], by theta."""
        rotations: dict[float, Rotate] = {}
        for theta, frequencies in self._frequencies.items():
            angles = positions.float()[:, None, None] * frequencies  # [T, 1, head_dim / 2]
            cos, sin = angles.cos(), angles.sin()
            rotations[theta] = partial(
                _rotate,
                cos=torch.cat((cos, cos), dim=-1).to(self._dtype),
                signed_sin=torch.cat((-sin, sin), dim=-1).to(self._dtype),
            )
        return rotations


def _rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """The halves of each head against each other: [T, heads, head_dim] → the same."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), signed_sin)


class SelfAttention(nn.Module):
    """Queries, keys and values in one product."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self._shape = (3, config.num_attention_heads, config.head_dim)
        self.qkv = Linear(size, (size, size, size), bias=config.attention_bias, packs_float32=True)
        if config.has_qk_norm:
            self.layer_norm_q = LayerNorm(size, config.layer_norm_eps)
            self.layer_norm_k = LayerNorm(size, config.layer_norm_eps)
        self._has_qk_norm = config.has_qk_norm

    def forward(self, x: torch.Tensor, around: Surroundings) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        queries, keys, values = self.qkv(x).view(x.shape[0], *self._shape).unbind(1)
        if self._has_qk_norm:
            queries = self.layer_norm_q(queries.flatten(1)).view(queries.shape)
            keys = self.layer_norm_k(keys.flatten(1)).view(keys.shape)
        if around.rotate is not None:
            queries, keys = around.rotate(queries), around.rotate(keys)
        return attend_flat(queries, keys, values, around.runs, reach=around.reach, bias=around.bias)


class Intermediate(nn.Module):
    """The first half of a feed-forward layer: the way up, gated or not."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self._is_gated = config.is_gated
        size = config.intermediate_size
        if config.is_gated:
            self.gate_up = Linear(config.hidden_size, (size, size), bias=config.up_bias, packs_float32=True)
        else:
            self.dense = Linear(config.hidden_size, (size,), bias=config.up_bias, packs_float32=True)
        self._activation = ACTIVATIONS[config.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] → [T, intermediate]."""
        if not self._is_gated:
            return self._activation(self.dense(x))
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self._activation(gate).mul_(up)


class ClassificationHead(nn.Module):
    """Two layers, in float32: [S, hidden] → [S, num_labels]."""

    def __init__(self, config: EncoderConfig, num_labels: int, *, has_norm: bool = False) -> None:
        super().__init__()
        size = config.hidden_size
        self.dense = Head(size, size, bias=config.head_bias)
        self._activation = ACTIVATIONS[config.head_activation]
        self.norm = (
            LayerNorm(size, config.layer_norm_eps, bias=config.norm_bias) if has_norm else nn.Identity()
        )
        self.out_proj = Head(size, num_labels, bias=True)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.norm(self._activation(self.dense(pooled))))  # type: ignore[no-any-return]


class EncoderModel(nn.Module):
    """What the pooling runner and the loader ask of an encoder."""

    FUSED: ClassVar[dict[str, tuple[str, ...]]] = {
        "qkv": ("query", "key", "value"),
        "gate_up": ("gate", "up"),
    }
    UNUSED: ClassVar[tuple[str, ...]] = ()
    config: EncoderConfig
    dtype: torch.dtype
    device: torch.device
    classifier: ClassificationHead | None

    def shared_weights(self) -> dict[str, str]:
        return {}

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → logits, float32 [S, num_labels]. Requires a classifier."""
        if self.classifier is None:
            raise TypeError("This encoder was built without a classifier.")
        return self.classifier(pooled)  # type: ignore[no-any-return]
