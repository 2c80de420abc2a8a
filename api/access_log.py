"""The access log's lines of requests that never reach the data plane, which writes those of all others."""

from __future__ import annotations

import logging
import time

from api.asgi import Scope

access_logger = logging.getLogger("berth.access")


def log_answered(scope: Scope, status: int, started: float, request_id: bytes, why: str) -> None:
    """One line; `started` is time.perf_counter() when the request came, `why` it went no further."""
    if access_logger.isEnabledFor(logging.INFO):
        client = scope.get("client")
        access_logger.info(
            '%s "%s %s" %d %.1f ms %s, %s',
            client[0] if client else "unknown",
            scope["method"],
            scope["path"],
            status,
            (time.perf_counter() - started) * 1000,
            request_id.decode(),
            why,
        )
