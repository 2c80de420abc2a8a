"""Attention over whole sequences, concatenated without a cache, as encoders use it.

Nothing is padded: adjacent sequences of the same length share one call, so the only cost of mixed lengths is
a call per length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F

_BLOCK = 512  # queries at a time where a mask or a bias is needed: neither is ever as large as length²


@dataclass(frozen=True, slots=True)
class EqualLengths:
    """`count` sequences of `length` tokens each, starting at row `first_row`."""

    first_row: int
    count: int
    length: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.count * self.length)


@dataclass(frozen=True, slots=True)
class FlatInputs:
    """T tokens of S whole sequences, on the model's device."""

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], from 0 in each sequence
    type_ids: torch.Tensor  # int64 [T], 0 or 1: the first or the second text of a pair
    runs: tuple[EqualLengths, ...]  # cover all rows in order

    @property
    def longest(self) -> int:
        return max(run.length for run in self.runs)


@dataclass(frozen=True, slots=True)
class Reach:
    """How many tokens before and after its own a query sees; None = all of its sequence."""

    before: int | None = None
    after: int | None = None


BOTH_WAYS = Reach()
CAUSAL = Reach(after=0)


def runs_of(lengths: Sequence[int]) -> tuple[EqualLengths, ...]:
    """Groups neighbours of equal length; sorted lengths give the fewest runs."""
    runs = []
    first_row = 0
    for length, same in groupby(lengths):
        count = sum(1 for _ in same)
        runs.append(EqualLengths(first_row, count, length))
        first_row += count * length
    return tuple(runs)


def attend_flat(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    runs: Sequence[EqualLengths],
    *,
    reach: Reach = BOTH_WAYS,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Each token attends within its sequence: three times [T, heads, head_dim] → [T, heads * head_dim].

    Keys and values may have fewer heads, each for as many neighbouring ones of the queries. `scale` is that
    of the scores, head_dim ** -0.5 by default.

    `bias` [heads, 2 * n - 1] is added to the scores, by the distance of a key from its query, from 1 - n to
    n - 1, where n is at least the longest length.
    """
    output = queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])
    for run in runs:
        one, two, three = (_by_sequence(rows, run, queries.shape[1]) for rows in (queries, keys, values))
        attended = _attend_run(one, two, three, reach, bias, scale)
        output[run.rows] = attended.transpose(1, 2).reshape(run.count * run.length, -1)
    return output


def _by_sequence(rows: torch.Tensor, run: EqualLengths, num_heads: int) -> torch.Tensor:
    """The run's rows of [T, heads, head_dim] as [count, num_heads, length, head_dim]."""
    view = rows[run.rows].view(run.count, run.length, *rows.shape[1:]).transpose(1, 2)
    return view if rows.shape[1] == num_heads else view.repeat_interleave(num_heads // rows.shape[1], dim=1)


def _attend_run(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    reach: Reach,
    bias: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Three times [count, heads, length, head_dim] → the same."""
    length = queries.shape[2]
    before = length if reach.before is None else reach.before
    after = length if reach.after is None else reach.after
    if bias is None and before >= length - 1:
        if after >= length - 1:
            return F.scaled_dot_product_attention(queries, keys, values, scale=scale)
        if after == 0:
            return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)
    blocks = []
    for start in range(0, length, _BLOCK):
        rows = range(start, min(start + _BLOCK, length))
        seen = range(max(0, rows.start - before), min(length, rows.stop + after))
        part = slice(seen.start, seen.stop)
        mask = _mask(rows, seen, before, after, bias, queries)
        blocks.append(
            F.scaled_dot_product_attention(
                queries[:, :, rows.start : rows.stop],
                keys[:, :, part],
                values[:, :, part],
                attn_mask=mask,
                scale=scale,
            )
        )
    return torch.cat(blocks, dim=2)


def _mask(
    rows: range, seen: range, before: int, after: int, bias: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor:
    """What is added to the scores of these queries and keys, or (bool) which of them count."""
    distances = (
        torch.arange(seen.start, seen.stop, device=like.device)
        - torch.arange(rows.start, rows.stop, device=like.device)[:, None]
    )
    counts = (distances >= -before) & (distances <= after)
    if bias is None:
        return counts
    return _bias_of(rows, seen, bias).to(like.dtype).masked_fill_(~counts, float("-inf"))


def _bias_of(rows: range, seen: range, bias: torch.Tensor) -> torch.Tensor:
    """The rows' part of the bias: [heads, len(rows), len(seen)]. Each row is the last one, shifted by one."""
    zero = bias.shape[1] // 2
    last = seen.start - rows[-1] + zero  # where the last row's first key is
    return bias[:, last : last + len(rows) + len(seen) - 1].unfold(1, len(seen), 1).flip(1)
