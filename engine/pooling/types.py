"""The words between the server and the pooling engine. A leaf: no torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from engine.core.sleep import MemoryUsage, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingRequest:
    """One input to pool, checked by the server before it gets here."""

    request_id: str
    token_ids: Sequence[int]
    type_ids: Sequence[int] | None = None  # parallel to token_ids: 1 in the second text of a pair; None = 0
    dimensions: int | None = None  # of an embedding: this many of the first; None = all
    use_activation: bool = True
    priority: int = 0  # lower first, as vLLM has it
    arrival_time: float  # monotonic seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """What became of one request: values, or an error fit to be read by the client."""

    request_id: str
    values: array[float] | None = None  # float32: an embedding, or a score per label
    error: str | None = None


class PoolingRunner(Protocol):
    """Runs batches on a device; tests put a fake here."""

    def run(self, batch: Sequence[PoolingRequest]) -> list[array[float]]:
        """The values of each request, in order."""
        ...

    def sleep(self, level: int) -> None:
        """As engine/core/sleep_controller.py's Sleeps."""
        ...

    def wake_up(self, parts: Set[Part]) -> None:
        """As engine/core/sleep_controller.py's Sleeps."""
        ...

    @property
    def memory(self) -> MemoryUsage:
        """What the runner holds now; may be read by any thread."""
        ...
