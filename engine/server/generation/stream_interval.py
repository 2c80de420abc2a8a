"""Fewer, larger pieces for streams: `stream_interval`, as vLLM has it. Pure: deltas in, deltas out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from engine.core.async_engine import AsyncEngine
from engine.server.generation.generation import Choice, ChoiceDelta, Generation, merge_deltas
from engine.server.model.metrics import Metrics


class IntervalGeneration(Generation):
    """A generation whose steps come less often."""

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
    """The same deltas, each choice's held back until they have `interval` tokens; first and last aren't."""
    bundles: dict[Choice, _Bundle] = {}
    async for deltas in steps:
        due = list(_take_due(deltas, bundles, interval))
        if due:
            yield due


class _Bundle:
    """What of one choice is held back."""

    def __init__(self) -> None:
        self.has_begun = False
        self.deltas: list[ChoiceDelta] = []
        self.num_tokens = 0

    def add(self, delta: ChoiceDelta) -> None:
        self.deltas.append(delta)
        self.num_tokens += len(delta.token_ids)

    def take(self) -> ChoiceDelta:
        """All of it as one delta."""
        deltas = self.deltas
        self.has_begun, self.deltas, self.num_tokens = True, [], 0
        return merge_deltas(deltas)


def _take_due(
    deltas: Iterable[ChoiceDelta], bundles: dict[Choice, _Bundle], interval: int
) -> Iterable[ChoiceDelta]:
    for delta in deltas:
        bundle = bundles.setdefault(delta.choice, _Bundle())
        bundle.add(delta)
        is_end = delta.finish_reason is not None
        if is_end or not bundle.has_begun or bundle.num_tokens >= interval:
            yield bundle.take()
