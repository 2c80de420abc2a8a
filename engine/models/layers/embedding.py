"""The table of token embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from engine.models.layers.weights import WeightedLayer


class Embedding(WeightedLayer):
    """[vocab_size, hidden_size]. On a CPU it stays mapped from the file: only used rows take memory."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self._shape = (vocab_size, hidden_size)
        self._weight = torch.empty(0)

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return {"weight": [self._shape]}

    def load(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        (self._weight,) = parts

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [T] → [T, hidden_size]."""
        return F.embedding(token_ids, self._weight)
