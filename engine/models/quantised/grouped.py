"""Integers of a few bits with a scale and a zero point per group of columns.

The arithmetic that AWQ, GPTQ and compressed-tensors share.
"""

from __future__ import annotations

import torch

from engine.errors import CheckpointError

_LONG_RUN = 8  # columns of one group side by side: then a group at a time is faster than all by index


def dequantise_groups(
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | int,
    groups: torch.Tensor,
) -> torch.Tensor:
    """(values - zeros) * scales, in float32.

    `values` [rows, columns]; `scales` and `zeros` [rows, groups]; `groups` [columns]: each column's group.
    """
    result, scales = values.float(), scales.float()
    if isinstance(zeros, int):
        result -= zeros
    runs, counts = torch.unique_consecutive(groups, return_counts=True)
    if len(runs) * _LONG_RUN > len(groups):  # in any order
        if not isinstance(zeros, int):
            result -= zeros.float()[:, groups]
        return result.mul_(scales[:, groups])
    stop = 0
    for group, count in zip(runs.tolist(), counts.tolist(), strict=True):
        columns = result[:, stop : stop + count]
        stop += count
        if not isinstance(zeros, int):
            columns -= zeros[:, group : group + 1].float()
        columns *= scales[:, group : group + 1]
    return result


def group_size(setting: object, num_columns: int, num_groups: int, layer: str) -> int:
    """Columns per group; a setting of -1 or none stands for one group. Raises CheckpointError."""
    size = setting if isinstance(setting, int) and setting > 0 else num_columns
    if -(-num_columns // max(1, size)) != num_groups:
        raise CheckpointError(
            f"The checkpoint has {num_groups} groups of scales for {layer}, which don't fit {num_columns} "
            f"columns in groups of {size}."
        )
    return size
