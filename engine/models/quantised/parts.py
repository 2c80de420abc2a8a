"""Checks of a quantised tensor's stored parts, before they are read. Errors name the part."""

from __future__ import annotations

import torch

from engine.errors import CheckpointError
from engine.models.tensor_source import TensorSource


def check_dimensions(source: TensorSource, name: str, count: int) -> tuple[int, ...]:
    """Its shape, which must have so many dimensions. Raises CheckpointError."""
    shape = source.shape(name)
    if len(shape) != count:
        dimensions = "1 dimension" if count == 1 else f"{count} dimensions"
        raise CheckpointError(f"The checkpoint's {name} has shape {list(shape)} instead of {dimensions}.")
    return shape


def check_shape(source: TensorSource, name: str, shape: tuple[int, ...]) -> None:
    """Raises CheckpointError."""
    stored = source.shape(name)
    if stored != shape:
        raise CheckpointError(f"The checkpoint's {name} has shape {list(stored)} instead of {list(shape)}.")


def check_words(source: TensorSource, name: str) -> tuple[int, ...]:
    """The shape of a matrix of int32, into which smaller integers are packed. Raises CheckpointError."""
    shape = check_dimensions(source, name, 2)
    stored = source.tensor(name, rows=slice(0, 0)).dtype
    if stored != torch.int32:
        raise CheckpointError(
            f"The checkpoint stores {name} as {str(stored).removeprefix('torch.')}, but packed values can be "
            "read from int32 only."
        )
    return shape
