"""What one layer's attention computes, whatever computes it. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # of the products of queries and keys, usually head_dim ** -0.5
    window: int | None = None  # a query at position p sees p - window + 1 … p; None = all up to its own
    softcap: float | None = None  # scores become softcap * tanh(score / softcap), as in Gemma 2
    has_sinks: bool = False  # a learned logit per head that takes part in the softmax, as in gpt-oss

    @property
    def values_per_token(self) -> int:
        """Numbers that the KV cache holds per token."""
        return 2 * self.num_kv_heads * self.head_dim


def bytes_per_token(specs: Iterable[AttentionSpec], element_size: int) -> int:
    """Bytes of keys and values in all layers."""
    return sum(spec.values_per_token for spec in specs) * element_size
