"""Attention of decoders that look both ways, over whole sequences, with the paged KV cache's interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.errors import UnsupportedModel
from engine.models.attention.flat import EqualLengths, Reach, attend_flat, runs_of
from engine.models.attention.paged import PagedKVCache
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs


class WholeSequences(PagedKVCache):
    """Every step starts anew: a token's slot is its row, and each sees all of its sequence, or its window."""

    def __init__(
        self, specs: Sequence[AttentionSpec], *, num_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`num_tokens`: of the largest step. Raises UnsupportedModel."""
        if any(spec.softcap is not None or spec.has_sinks for spec in specs):
            raise UnsupportedModel("A decoder with softcaps or attention sinks can't look both ways here.")
        super().__init__(
            specs, num_blocks=num_tokens, block_size=1, dtype=dtype, device=device, shares_memory=True
        )

    def attend(
        self, layer: int, queries: torch.Tensor, inputs: StepInputs, sinks: torch.Tensor | None = None
    ) -> torch.Tensor:
        spec, num_rows = self.specs[layer], queries.shape[0]
        distance = None if spec.window is None else spec.window - 1
        return attend_flat(
            queries,
            self.keys[layer][0][:, :num_rows].transpose(0, 1),
            self.values[layer][0][:, :num_rows].transpose(0, 1),
            inputs.plan(self, None),
            reach=Reach(distance, distance),
            scale=spec.scale,
        )

    def plan(self, inputs: StepInputs, window: int | None) -> tuple[EqualLengths, ...]:
        """Made once for all layers."""
        return runs_of(inputs.host.first_rows.diff().tolist())
