"""How the vectors of a sequence's tokens become one."""

from __future__ import annotations

from enum import StrEnum


class PoolingType(StrEnum):
    """vLLM's names."""

    CLS = "CLS"  # the first token's vector
    LAST = "LAST"  # the last token's
    MEAN = "MEAN"  # the mean of all
