"""Attention over concatenated sequences, against one softmax over the whole matrix of scores."""

from __future__ import annotations

import pytest
import torch

from engine.models.attention.flat import BOTH_WAYS, CAUSAL, Reach, attend_flat, runs_of

HEADS, HEAD_DIM = 3, 8
LENGTHS = (1, 2, 7, 7, 513, 1030, 1030)


def plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, reach: Reach, bias: torch.Tensor | None
) -> torch.Tensor:
    """[length, heads, head_dim] → [length, heads * head_dim]."""
    length = len(q)
    scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD_DIM**0.5
    distances = torch.arange(length) - torch.arange(length)[:, None]
    if bias is not None:
        scores = scores + bias[:, distances + bias.shape[1] // 2]
    if reach.before is not None:
        scores = scores.masked_fill(distances < -reach.before, float("-inf"))
    if reach.after is not None:
        scores = scores.masked_fill(distances > reach.after, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v).reshape(length, -1)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    "reach", [BOTH_WAYS, CAUSAL, Reach(5, 5), Reach(600, 3), Reach(0, 0), Reach(before=9)]
)
def test_every_reach_and_bias(reach: Reach, has_bias: bool) -> None:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    q, k, v = torch.randn(3, total, HEADS, HEAD_DIM).unbind()
    bias = torch.randn(HEADS, 2 * 1100 - 1) if has_bias else None
    ours = attend_flat(q, k, v, runs_of(LENGTHS), reach=reach, bias=bias)
    start = 0
    for length in LENGTHS:
        rows = slice(start, start + length)
        expected = plain(q[rows], k[rows], v[rows], reach, bias)
        assert (ours[rows] - expected).abs().max() < 1e-5
        start += length
