"""One request as Berth accounts for it: its instance, lease, metrics and line in the access log."""

from __future__ import annotations

import logging
import time

from api.access_log import access_logger, write_line
from api.asgi import Scope
from api.exchange import Request
from api.leases import Lease
from instance_manager.metrics import InstanceMetrics


class Call:
    """Begins with no lease and no instance's metrics; ends with `finish`, whatever happens to it."""

    __slots__ = ("instance_id", "lease", "metrics", "request", "scope")

    def __init__(self, scope: Scope, request: Request, instance_id: str, unserved: InstanceMetrics) -> None:
        self.scope = scope
        self.request = request
        self.instance_id = instance_id
        self.metrics = unserved
        self.lease: Lease | None = None

    def enter(self, lease: Lease, metrics: InstanceMetrics) -> None:
        """An instance will serve it."""
        self.lease = lease
        self.metrics = metrics
        metrics.in_flight += 1

    def leave(self) -> None:
        """The instance won't serve it after all."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None
            self.metrics.in_flight -= 1

    def finish(self, status: int) -> None:
        """It is over; `status` is the response's, or what there was to say instead of one."""
        seconds = time.perf_counter() - self.request.started
        self.leave()
        self.metrics.count(self.request.method, status)
        self.metrics.request_s.observe(seconds)
        if access_logger.isEnabledFor(logging.INFO):
            request, metrics = self.request, self.metrics
            write_line(
                self.scope,
                status,
                request.started,
                request.headers.request_id,
                instance=metrics.instance_id,
                model=metrics.model,
                first_byte_s=request.first_byte_s,
            )
