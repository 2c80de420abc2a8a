"""The table of token embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from engine.models.layers.division import DeviceGroup, vocabulary_share, whole
from engine.models.layers.weights import StoredLayer, WeightedLayer


class Embedding(WeightedLayer):
    """[vocab_size, hidden_size]. On a CPU it stays mapped from the file: only used rows take memory."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self._shape = (vocab_size, hidden_size)
        self._weight = torch.empty(0)
        self._share = whole(vocab_size)
        self._group: DeviceGroup | None = None

    def divide(self, group: DeviceGroup) -> None:
        """Become this device's share of the vocabulary."""
        self._share, self._group = vocabulary_share(self._shape[0], group), group

    def part_shapes(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return {"weight": [self._shape]}

    def load_from(self, stored: StoredLayer) -> None:
        self._weight = stored.load("weight", rows=self._share.of(self._share.size))

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [T] → [T, hidden_size]."""
        if self._group is None:
            return F.embedding(token_ids, self._weight)
        own = token_ids - self._share.start
        is_elsewhere = (own < 0) | (own >= len(self._weight))
        embedded = F.embedding(own.masked_fill(is_elsewhere, 0), self._weight)
        return self._group.all_reduce(embedded.masked_fill_(is_elsewhere[:, None], 0))
