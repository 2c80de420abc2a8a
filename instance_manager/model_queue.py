"""Who waits for a model, whichever of its replicas comes free: by priority, then by arrival."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from instance_manager.admission import Lease
from instance_manager.errors import ManagerError, QueueFull


class ModelQueue:
    """Bounded. A waiter that leaves is dropped; what was begun for it goes on."""

    def __init__(self, model_name: str, max_queue: int, clock: Callable[[], float]) -> None:
        self._model_name = model_name
        self._max_queue = max_queue
        self._clock = clock
        self._numbers = itertools.count()
        self._heap: list[tuple[int, int, float, asyncio.Future[Lease]]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def since(self) -> float | None:
        """When the one who waits longest came, in the clock's seconds; None = nobody waits."""
        return min((since for _, _, since, waiter in self._heap if not waiter.done()), default=None)

    @property
    def priority(self) -> int:
        """The most urgent one's; lower is sooner."""
        return min((priority for priority, _, _, waiter in self._heap if not waiter.done()), default=0)

    def check_room(self) -> None:
        """Raise QueueFull where as many wait as may."""
        if self._size >= self._max_queue:
            raise QueueFull(
                f"{self._size} requests wait for model {self._model_name!r} already, as many as MAX_QUEUE "
                "allows; try again later",
                retry_after_s=1.0,
            )

    async def wait(self, priority: int) -> Lease:
        """A lease, when it is this one's turn. Raises QueueFull, or what `reject` was given."""
        self.check_room()
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (priority, next(self._numbers), self._clock(), waiter))
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

    def grant(self, take: Callable[[], Lease | None]) -> None:
        """Give those who wait leases, as long as `take` has any."""
        while self._drop_those_who_left():
            lease = take()
            if lease is None:
                return
            heapq.heappop(self._heap)[-1].set_result(lease)

    def reject(self, make_error: Callable[[], ManagerError]) -> None:
        """Send everyone who waits away, each with an error of its own."""
        for *_, waiter in self._heap:
            if not waiter.done():
                waiter.set_exception(make_error())
        self._heap.clear()

    def _drop_those_who_left(self) -> bool:
        """Whether somebody is left."""
        while self._heap and self._heap[0][-1].done():
            heapq.heappop(self._heap)
        return bool(self._heap)
