"""Who waits for a model, whichever of its replicas comes free: by priority, then by arrival.

Requests that need an engine which generates and those that need one which pools wait side by side: neither
holds the other up.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator

from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.errors import ManagerError, QueueFull
from instance_manager.lifecycle.gate import Lease

_Waiter = asyncio.Future[Lease]
_Entry = tuple[int, int, float, _Waiter]  # priority, number, since, waiter


class ModelQueue:
    """Bounded. A waiter that leaves is dropped; what was begun for it goes on."""

    def __init__(self, model_name: str, max_queue: int, clock: Callable[[], float]) -> None:
        self._model_name = model_name
        self._max_queue = max_queue
        self._clock = clock
        self._numbers = itertools.count()
        self._heaps: dict[RunnerKind | None, list[_Entry]] = {}  # by what is needed
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def since(self) -> float | None:
        """When the one who waits longest came, in the clock's seconds; None = nobody waits."""
        return min((since for _, _, since, _ in self._waiting()), default=None)

    @property
    def priority(self) -> int:
        """The most urgent one's; lower is sooner."""
        return min((priority for priority, *_ in self._waiting()), default=0)

    @property
    def needs(self) -> list[RunnerKind | None]:
        """What those who wait need, the most urgent first."""
        heads = [(heap[0][:2], need) for need, heap in self._heaps.items() if _drop_those_who_left(heap)]
        return [need for _, need in sorted(heads, key=lambda head: head[0])]

    def is_waited_for(self, need: RunnerKind | None) -> bool:
        """Whether somebody who waits would be served before one who comes now and needs this."""
        return self._size > 0 and (need is None or any(one in (None, need) for one in self.needs))

    def check_room(self) -> None:
        """Raise QueueFull where as many wait as may."""
        if self._size >= self._max_queue:
            raise QueueFull(
                f"{self._size} requests wait for model {self._model_name!r} already, as many as MAX_QUEUE "
                "allows; try again later",
                retry_after_s=1.0,
            )

    async def wait(self, priority: int, need: RunnerKind | None = None) -> Lease:
        """A lease, when it is this one's turn. Raises QueueFull, or what `reject` was given."""
        self.check_room()
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        heap = self._heaps.setdefault(need, [])
        heapq.heappush(heap, (priority, next(self._numbers), self._clock(), waiter))
        self._size += 1
        try:
            return await waiter
        except asyncio.CancelledError:
            # The grant and the cancellation may have met: then the lease is ours and nobody else frees it.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            else:
                waiter.cancel()
            raise
        finally:
            self._size -= 1

    def grant(self, take: Callable[[], Lease | None], need: RunnerKind | None = None) -> None:
        """Give those who wait for this need leases, as long as `take` has any."""
        heap = self._heaps.get(need, [])
        while _drop_those_who_left(heap):
            lease = take()
            if lease is None:
                return
            heapq.heappop(heap)[-1].set_result(lease)

    def reject(
        self,
        make_error: Callable[[], ManagerError],
        is_meant: Callable[[RunnerKind | None], bool] = lambda _: True,
    ) -> None:
        """Send those who wait away, each with an error of its own; `is_meant` says whom, by their needs."""
        for need, heap in self._heaps.items():
            if not is_meant(need):
                continue
            for *_, waiter in heap:
                if not waiter.done():
                    waiter.set_exception(make_error())
            heap.clear()

    def _waiting(self) -> Iterator[_Entry]:
        return (entry for heap in self._heaps.values() for entry in heap if not entry[-1].done())


def _drop_those_who_left(heap: list[_Entry]) -> bool:
    """Whether somebody is left."""
    while heap and heap[0][-1].done():
        heapq.heappop(heap)
    return bool(heap)
