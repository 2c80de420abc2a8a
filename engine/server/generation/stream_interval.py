"""vLLM's `stream_interval`: fewer, larger chunks. Pure: deltas in, deltas out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from engine.core.async_engine import AsyncEngine
from engine.server.generation.generation import Choice, ChoiceDelta, Generation, merge_deltas
from engine.server.model.metrics import Metrics


class IntervalGeneration(Generation):
    """A generation that yields its deltas every `interval` tokens."""

    def __init__(
        self, engine: AsyncEngine, metrics: Metrics, choices: Sequence[Choice], *, interval: int
    ) -> None:
        super().__init__(engine, metrics, choices)
        self._interval = interval

    def steps(self) -> AsyncIterator[list[ChoiceDelta]]:
        return coalesce(super().steps(), self._interval)


async def coalesce(
    steps: AsyncIterator[list[ChoiceDelta]], interval: int
) -> AsyncIterator[list[ChoiceDelta]]:
    """Hold back each choice's deltas until they have `interval` tokens, except the first and the last."""
    held_by_choice: dict[Choice, _HeldDeltas] = {}
    async for deltas in steps:
        due = list(_due_deltas(deltas, held_by_choice, interval))
        if due:
            yield due


class _HeldDeltas:
    """The held-back deltas of one choice."""

    def __init__(self) -> None:
        self.has_begun = False
        self.deltas: list[ChoiceDelta] = []
        self.num_tokens = 0

    def add(self, delta: ChoiceDelta) -> None:
        self.deltas.append(delta)
        self.num_tokens += len(delta.token_ids)

    def release(self) -> ChoiceDelta:
        """All held deltas, merged into one."""
        deltas = self.deltas
        self.has_begun, self.deltas, self.num_tokens = True, [], 0
        return merge_deltas(deltas)


def _due_deltas(
    deltas: Iterable[ChoiceDelta], held_by_choice: dict[Choice, _HeldDeltas], interval: int
) -> Iterable[ChoiceDelta]:
    for delta in deltas:
        held = held_by_choice.setdefault(delta.choice, _HeldDeltas())
        held.add(delta)
        is_end = delta.finish_reason is not None
        if is_end or not held.has_begun or held.num_tokens >= interval:
            yield held.release()
