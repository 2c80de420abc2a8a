"""Token embeddings that are multiplied by a constant."""

from __future__ import annotations

import torch

from engine.models.layers.embedding import Embedding


class ScaledEmbedding(Embedding):
    """As Gemma has it, the constant is rounded to the model's dtype."""

    def __init__(self, vocab_size: int, hidden_size: int, scale: float) -> None:
        super().__init__(vocab_size, hidden_size)
        self._scale = scale

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [T] → [T, hidden_size]."""
        x = super().forward(token_ids)
        return x.mul_(torch.tensor(self._scale, dtype=x.dtype).item())
