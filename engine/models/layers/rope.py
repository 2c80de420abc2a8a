"""Rotary position embedding (Su et al. 2021), with the scalings that extend a model's length.

Angles are computed in float32 once per step, for its positions; there is no table for the whole context.

Two scalings depend on the length of a sequence: LongRoPE has other frequencies beyond the original length,
and dynamic NTK stretches them with each token. transformers looks at the longest sequence of a call and
changes the frequencies from call to call. In a server, keys that are in the cache already, perhaps in a block
that several sequences share, would then be rotated by other frequencies than the queries that meet them, and
one sequence's length would change another's output. So, as in vLLM, they are fixed by the longest sequence
that is served (`max_model_len`): a server that admits no more than the original length computes as
transformers does for short sequences, any other as transformers does for a sequence of that length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.models.rope_config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)


@dataclass(frozen=True, slots=True)
class Rotation:
    """The step's rotations: both [T, 1, rotary_dim], in the model's dtype."""

    cos: torch.Tensor
    signed_sin: torch.Tensor  # the first half of the last dimension negated


class RotaryEmbedding:
    """Rotates the halves of each head against each other by an angle that grows with the position."""

    def __init__(
        self,
        head_dim: int,
        config: RopeConfig | None,
        *,
        longest: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`config` None: by an angle of zero. `longest`: positions of the longest sequence that is served."""
        self._dtype = dtype
        self._factor = 1.0 if config is None else config.attention_factor
        frequencies = (
            torch.zeros(head_dim // 2) if config is None else inverse_frequencies(head_dim, config, longest)
        )
        self._inverse_frequencies = frequencies.to(device)

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """For int64 positions [T]."""
        angles = positions.to(torch.float32)[:, None] * self._inverse_frequencies  # [T, rotary_dim / 2]
        cos, sin = angles.cos() * self._factor, angles.sin() * self._factor
        return Rotation(
            torch.cat((cos, cos), dim=-1).to(self._dtype)[:, None],
            torch.cat((-sin, sin), dim=-1).to(self._dtype)[:, None],
        )


class LayerRopes:
    """The rotary embeddings of a model's layers. Layers of the same configuration share one."""

    def __init__(
        self,
        configs: Sequence[RopeConfig | None],
        head_dim: int,
        *,
        longest: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._configs = tuple(configs)
        self._embeddings = {
            config: RotaryEmbedding(head_dim, config, longest=longest, dtype=dtype, device=device)
            for config in dict.fromkeys(self._configs)
        }

    def rotations(self, positions: torch.Tensor) -> list[Rotation]:
        """For int64 positions [T], of each layer."""
        made = {config: embedding.rotation(positions) for config, embedding in self._embeddings.items()}
        return [made[config] for config in self._configs]


def inverse_frequencies(head_dim: int, config: RopeConfig, longest: int) -> torch.Tensor:
    """Radians per position, float32 [rotary_dim / 2], decreasing."""
    dim, scaling = config.rotary_dim(head_dim), config.scaling
    theta: float | torch.Tensor = config.theta
    if isinstance(scaling, DynamicScaling):
        theta = theta * _growth(scaling, longest) ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim
    frequencies = 1.0 / (theta**exponents)
    match scaling:
        case LinearScaling():
            return frequencies / scaling.factor
        case Llama3Scaling():
            return _llama3_scaled(frequencies, scaling)
        case YarnScaling():
            return _yarn_scaled(frequencies, scaling, config.theta)
        case LongRopeScaling():
            is_long = longest > scaling.original_max_position_embeddings
            factors = torch.tensor(scaling.long_factors if is_long else scaling.short_factors)
            return 1.0 / (factors * theta**exponents)
    return frequencies


def _growth(scaling: DynamicScaling, longest: int) -> torch.Tensor:
    """Float32, as transformers has it: cosines of large angles show the difference to Python's numbers."""
    original = scaling.original_max_position_embeddings
    length = torch.tensor(max(longest, original))
    return scaling.factor * length / original - (scaling.factor - 1)


def _llama3_scaled(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    periods = scaling.original_max_position_embeddings / wavelengths  # within the original context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((periods - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def _yarn_scaled(frequencies: torch.Tensor, scaling: YarnScaling, theta: float) -> torch.Tensor:
    dim = 2 * len(frequencies)

    def dimension_of(rotations: float) -> float:
        """Where the frequency is that turns so many times within the original length."""
        turns = scaling.original_max_position_embeddings / (2 * math.pi * rotations)
        return dim * math.log(turns) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncates:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    stretched = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return stretched * frequencies / scaling.factor + (1 - stretched) * frequencies
