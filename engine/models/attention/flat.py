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


def runs_of(lengths: Sequence[int]) -> tuple[EqualLengths, ...]:
    """Groups neighbours of equal length; sorted lengths give the fewest runs."""
    runs = []
    first_row = 0
    for length, same in groupby(lengths):
        count = sum(1 for _ in same)
        runs.append(EqualLengths(first_row, count, length))
        first_row += count * length
    return tuple(runs)


def attend_both_ways(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, runs: Sequence[EqualLengths]
) -> torch.Tensor:
    """Each token attends to its whole sequence: three times [T, heads, head_dim] → [T, heads * head_dim]."""
    output = queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])
    for run in runs:
        attended = F.scaled_dot_product_attention(
            _by_sequence(queries, run), _by_sequence(keys, run), _by_sequence(values, run)
        )
        output[run.rows] = attended.transpose(1, 2).reshape(run.count * run.length, -1)
    return output


def _by_sequence(rows: torch.Tensor, run: EqualLengths) -> torch.Tensor:
    """The run's rows of [T, heads, head_dim] as [count, heads, length, head_dim]; a view."""
    return rows[run.rows].view(run.count, run.length, *rows.shape[1:]).transpose(1, 2)
