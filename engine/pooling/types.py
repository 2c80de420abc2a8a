"""The interface types between the server and the pooling engine. A leaf: no torch."""

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
    dimensions: int | None = None  # of an embedding: only the first so many; None = all
    use_activation: bool = True
    priority: int = 0  # lower first, as vLLM has it
    arrival_time: float  # monotonic seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """The result of one request: values, or an error message for the client."""

    request_id: str
    num_tokens: int  # of the input
    values: array[float] | None = None  # float32: an embedding, or a score per label
    error: str | None = None


class PoolingRunner(Protocol):
    """Runs batches on a device; tests put a fake here."""

    def run(self, batch: Sequence[PoolingRequest]) -> list[array[float]]:
        """The values of each request, in order."""
        ...

    def sleep(self, level: int) -> None:
        """See Sleeps in engine/core/sleep_controller.py."""
        ...

    def wake_up(self, parts: Set[Part]) -> None:
        """See Sleeps in engine/core/sleep_controller.py."""
        ...

    @property
    def memory(self) -> MemoryUsage:
        """Memory in use now; may be read by any thread."""
        ...
