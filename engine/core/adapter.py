"""A LoRA adapter as requests have it. Knows nothing of torch."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """Its memory is freed with the last reference: a request that runs keeps the adapter it began with."""

    name: str
    weights: Any = field(repr=False)  # the runner's own
    key: bytes = field(default_factory=lambda: uuid.uuid4().bytes, repr=False)  # no two have the same
