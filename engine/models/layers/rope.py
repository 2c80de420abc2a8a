"""Rotary position embedding (Su et al. 2021), with the frequency scaling of Llama 3.

Angles are computed in float32 once per step, for its positions; there is no table for the whole context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from engine.models.rope_config import Llama3Scaling, RopeConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """The step's rotations: both [T, 1, head_dim], in the model's dtype."""

    cos: torch.Tensor
    signed_sin: torch.Tensor  # the first half of the last dimension negated


class RotaryEmbedding:
    """Rotates the halves of each head against each other by an angle that grows with the position."""

    def __init__(
        self, head_dim: int, config: RopeConfig, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._dtype = dtype
        self._inverse_frequencies = inverse_frequencies(head_dim, config).to(device)

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """For int64 positions [T]."""
        angles = positions.to(torch.float32)[:, None] * self._inverse_frequencies  # [T, head_dim / 2]
        cos, sin = angles.cos(), angles.sin()
        return Rotation(
            torch.cat((cos, cos), dim=-1).to(self._dtype)[:, None],
            torch.cat((-sin, sin), dim=-1).to(self._dtype)[:, None],
        )


def inverse_frequencies(head_dim: int, config: RopeConfig) -> torch.Tensor:
    """Radians per position, float32 [head_dim / 2], decreasing."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    frequencies = 1.0 / (config.theta**exponents)
    return frequencies if config.scaling is None else _llama3_scaled(frequencies, config.scaling)


def _llama3_scaled(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    periods = scaling.original_max_position_embeddings / wavelengths  # within the original context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((periods - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies
