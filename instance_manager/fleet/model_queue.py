"""The requests that wait for any replica of a model: by priority, then by arrival.

Requests that need a generating engine and requests that need a pooling one queue separately: neither holds
the other up.
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
    """Bounded. A waiter that leaves is dropped; a start that was begun for it continues."""

    def __init__(self, model_name: str, max_queue: int, clock: Callable[[], float]) -> None:
        self._model_name = model_name
        self._max_queue = max_queue
        self._clock = clock
        self._numbers = itertools.count()
        self._heaps: dict[RunnerKind | None, list[_Entry]] = {}  # by the runner that the requests need
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def since(self) -> float | None:
        """When the longest-waiting request arrived, in the clock's seconds; None = none waits."""
        return min((since for _, _, since, _ in self._waiting()), default=None)

    @property
    def priority(self) -> int:
        """The most urgent request's; lower is sooner."""
        return min((priority for priority, *_ in self._waiting()), default=0)

    @property
    def needs(self) -> list[RunnerKind | None]:
        """The runners that waiting requests need, the most urgent first."""
        heads = [(heap[0][:2], need) for need, heap in self._heaps.items() if _drop_cancelled(heap)]
        return [need for _, need in sorted(heads, key=lambda head: head[0])]

    def is_waited_for(self, need: RunnerKind | None) -> bool:
        """Whether a waiting request would be served before a new one with this need."""
        return self._size > 0 and (need is None or any(other in (None, need) for other in self.needs))

    def check_not_full(self) -> None:
        """Raise QueueFull at MAX_QUEUE waiting requests."""
        if self._size >= self._max_queue:
            raise QueueFull(
                f"{self._size} requests already wait for model {self._model_name!r} (MAX_QUEUE); "
                "try again later",
                retry_after_s=1.0,
            )

    async def wait(self, priority: int, need: RunnerKind | None = None) -> Lease:
        """A lease, when it is this request's turn. Raises QueueFull, or what `reject` was given."""
        self.check_not_full()
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        heap = self._heaps.setdefault(need, [])
        heapq.heappush(heap, (priority, next(self._numbers), self._clock(), waiter))
        self._size += 1
        try:
            return await waiter
        except asyncio.CancelledError:
            # Grant and cancellation may have coincided: then the lease is ours, and only we can release it.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            else:
                waiter.cancel()
            raise
        finally:
            self._size -= 1

    def grant(self, try_lease: Callable[[], Lease | None], need: RunnerKind | None = None) -> None:
        """Give leases to the requests with this need, as long as `try_lease` returns any."""
        heap = self._heaps.get(need, [])
        while _drop_cancelled(heap):
            lease = try_lease()
            if lease is None:
                return
            heapq.heappop(heap)[-1].set_result(lease)

    def reject(
        self,
        make_error: Callable[[], ManagerError],
        is_affected: Callable[[RunnerKind | None], bool] = lambda _: True,
    ) -> None:
        """Fail waiting requests, each with an error of its own; `is_affected` selects them by their need."""
        for need, heap in self._heaps.items():
            if not is_affected(need):
                continue
            for *_, waiter in heap:
                if not waiter.done():
                    waiter.set_exception(make_error())
            heap.clear()

    def _waiting(self) -> Iterator[_Entry]:
        return (entry for heap in self._heaps.values() for entry in heap if not entry[-1].done())


def _drop_cancelled(heap: list[_Entry]) -> bool:
    """Remove cancelled waiters from the head; whether any waiter is left."""
    while heap and heap[0][-1].done():
        heapq.heappop(heap)
    return bool(heap)
