"""What all launches need: sizes, and whether the kernels are interpreted."""

from __future__ import annotations

import triton


def is_interpreted() -> bool:
    """Whether TRITON_INTERPRET runs the kernels in Python, on a CPU; it can't multiply bfloat16 matrices."""
    return bool(triton.knobs.runtime.interpret)


def padded(size: int, *, least: int = 16) -> int:
    """The next power of two, as Triton's ranges must be; 16 at least for products of matrices."""
    return max(least, 1 << (size - 1).bit_length())
