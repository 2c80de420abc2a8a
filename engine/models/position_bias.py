"""What is added to attention's scores by the distance of a key from its query."""

from __future__ import annotations

import math

import torch

from engine.models.layers.embedding import Embedding

_NUM_BUCKETS, _FARTHEST = 32, 128


def alibi_bias(num_heads: int, length: int, device: torch.device) -> torch.Tensor:
    """Minus the distance, times the head's slope (Press et al. 2022): float32 [heads, 2 * length - 1]."""
    slopes = torch.tensor(alibi_slopes(num_heads), device=device)
    return -slopes[:, None] * _distances(length, device).abs()


def alibi_slopes(num_heads: int) -> list[float]:
    """A geometric sequence that ends at 2⁻⁸; between powers of two, every other one of the next is added."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * head / power) for head in range(1, power + 1)]
    return slopes if power == num_heads else slopes + alibi_slopes(2 * power)[::2][: num_heads - power]


class DistanceBuckets(Embedding):
    """A learned bias for each head and range of distances, as in T5 (Raffel et al. 2020)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__(_NUM_BUCKETS, num_heads)

    def forward(self, length: int) -> torch.Tensor:  # type: ignore[override]
        """[heads, 2 * length - 1], in the weights' dtype."""
        buckets = _bucket_of(_distances(length, self._weight.device))
        return super().forward(buckets).T


def _distances(length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(1 - length, length, device=device)


def _bucket_of(distances: torch.Tensor) -> torch.Tensor:
    """Half of the buckets are for keys after the query; half of each half for one distance each."""
    half = _NUM_BUCKETS // 2
    exact = half // 2
    far = distances.abs()
    # Those beyond share buckets that widen with the logarithm, up to _FARTHEST.
    widening = torch.log(far.clamp(min=1).float() / exact) / math.log(_FARTHEST / exact) * (half - exact)
    beyond = (exact + widening.to(torch.int64)).clamp(max=half - 1)
    return (distances > 0) * half + torch.where(far < exact, far, beyond)
