"""The fast path: requests begin without a task, and a head that equals the previous one is not parsed.

ASGI costs a task and several messages per request. For short requests, the majority, this is more than all
the forwarding. So a request that has arrived whole is first offered to the application's `begin`.
"""

from __future__ import annotations

from typing import Any

from api.http.asgi import Scope
from api.http.head_cache import ROUTE_CACHE, CachedHead, cached_head
from api.http.response_channel import FastPathApp
from api.server.request_cycle import RequestCycle

_MAX_MISSES = 8  # heads in a row that differ from the previous one; then no more are cached
_MAX_BODY_BYTES = 64 * 1024


class FastPath:
    """One connection's: the application's `begin`, and the previous request's head."""

    def __init__(self, app: FastPathApp, max_body_bytes: int) -> None:
        self.begin = app.begin
        self._max_body_bytes = min(max_body_bytes, _MAX_BODY_BYTES)
        self._head: CachedHead | None = None
        self._scope: dict[str, Any] = {}
        self._length = 0
        self._num_misses = 0

    def recognise(self, data: bytes) -> tuple[Scope, bytes] | None:
        """Scope and body of the request that `data` is, if its head equals the cached one."""
        head = self._head
        body = head.body_of(data) if head is not None else None
        if head is None or body is None or len(body) > self._max_body_bytes:
            return None
        self._num_misses = 0
        if len(body) != self._length:
            self._length = len(body)
            self._scope["headers"] = head.headers_for(body)
        return self._scope.copy(), body

    def learn(self, data: bytes, cycle: RequestCycle) -> None:
        """Cache the head of `data`, which the parser has read as this request, and perhaps more."""
        if self._num_misses >= _MAX_MISSES:
            return
        self._num_misses += 1
        self._head = None
        scope = cycle.scope
        if cycle.keep_alive and not cycle.awaits_continue and scope["http_version"] == "1.1":
            headers = scope["headers"].copy()
            self._head = cached_head(data, headers)
        if self._head is not None:
            self._scope = {**scope, "headers": headers, ROUTE_CACHE: self._head.route_cache}
            self._length = len(cycle.body)
