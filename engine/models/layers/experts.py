"""A mixture of experts: each token runs through a few MLPs, which a router chooses (Shazeer et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from engine.models.layers.division import DeviceGroup
from engine.models.layers.linear import Linear


class MixtureOfExperts(nn.Module):
    """The weighted sum of the MLPs that the router gives the highest probabilities.

    The chosen experts run one after the other, each on its tokens. Its attributes are named like the
    checkpoint's tensors.
    """

    def __init__(
        self,
        hidden_size: int,
        make_expert: Callable[[], nn.Module],
        *,
        num_experts: int,
        num_chosen: int,
        normalises: bool,
    ) -> None:
        """`normalises`: whether the chosen experts' probabilities are scaled to a sum of 1."""
        super().__init__()
        self.gate = Linear(hidden_size, (num_experts,))
        self.experts = nn.ModuleList(make_expert() for _ in range(num_experts))
        self._num_chosen = num_chosen
        self._normalises = normalises
        self._group: DeviceGroup | None = None

    def divide(self, group: DeviceGroup) -> None:
        """Each device has a share of every expert, and the sum of their outputs is the result."""
        self._group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        weights, chosen = self._route(x)  # both [T, num_chosen]
        by_expert = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        rows, weights = by_expert // self._num_chosen, weights.flatten()[by_expert, None]
        output, start = torch.zeros_like(x), 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                own = slice(start, start + count)
                output.index_add_(0, rows[own], expert(x[rows[own]]) * weights[own])
                start += count
        return output if self._group is None else self._group.all_reduce(output)

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights and the numbers of each token's experts."""
        weights, chosen = self.gate(x).softmax(dim=-1, dtype=torch.float32).topk(self._num_chosen, dim=-1)
        if self._normalises:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(x.dtype), chosen
