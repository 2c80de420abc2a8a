"""Selects the requests that run next: pure, without I/O, threads or torch."""

from __future__ import annotations

import heapq
from itertools import count

from engine.pooling.types import PoolingRequest


class Batcher:
    """Waiting requests by priority, then by arrival; batches are limited in tokens and requests."""

    def __init__(self, *, max_tokens: int, max_requests: int) -> None:
        self._max_tokens = max_tokens
        self._max_requests = max_requests
        self._heap: list[tuple[int, int, PoolingRequest]] = []
        self._waiting: dict[str, PoolingRequest] = {}  # the heap may hold more: those that were aborted
        self._arrivals = count()

    def __repr__(self) -> str:
        return f"<Batcher {len(self._waiting)} waiting>"

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: PoolingRequest) -> None:
        self._waiting[request.request_id] = request
        heapq.heappush(self._heap, (request.priority, next(self._arrivals), request))

    def abort(self, request_id: str) -> bool:
        """Forget a request; False if it isn't waiting."""
        was_waiting = self._waiting.pop(request_id, None) is not None
        if not self._waiting:
            self._heap.clear()
        return was_waiting

    def next_batch(self) -> list[PoolingRequest]:
        """The next batch, shortest first, so that equal lengths run together. Empty if nothing waits.

        A request longer than the budget runs alone.
        """
        batch: list[PoolingRequest] = []
        num_tokens = 0
        while self._heap and len(batch) < self._max_requests:
            request = self._heap[0][2]
            if self._waiting.get(request.request_id) is request:
                if batch and num_tokens + len(request.token_ids) > self._max_tokens:
                    break
                batch.append(request)
                num_tokens += len(request.token_ids)
                del self._waiting[request.request_id]
            heapq.heappop(self._heap)
        return sorted(batch, key=lambda request: len(request.token_ids))
