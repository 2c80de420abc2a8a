"""Integers of a few bits with a scale and a zero point per group of columns.

The arithmetic that AWQ, GPTQ and compressed-tensors share.
"""

from __future__ import annotations

import torch

from engine.errors import CheckpointError


def dequantise_groups(
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | int,
    groups: torch.Tensor,
) -> torch.Tensor:
    """(values - zeros) * scales, in float32.

    `values` [rows, columns]; `scales` and `zeros` [rows, groups]; `groups` [columns]: each column's group.
    """
    zero = zeros if isinstance(zeros, int) else zeros[:, groups]
    return (values - zero).float() * scales.float()[:, groups]


def group_size(setting: object, num_columns: int, num_groups: int, layer: str) -> int:
    """Columns per group; a setting of -1 or none stands for one group. Raises CheckpointError."""
    size = setting if isinstance(setting, int) and setting > 0 else num_columns
    if -(-num_columns // max(1, size)) != num_groups:
        raise CheckpointError(
            f"The checkpoint has {num_groups} groups of scales for {layer}, which don't fit {num_columns} "
            f"columns in groups of {size}."
        )
    return size
