"""Accounting for one request: its target, lease, metrics and line in the access log."""

from __future__ import annotations

import logging
import time

from api.access.keys import caller_of
from api.http.asgi import Scope
from api.http.client_errors import WrongBody
from api.http.log_paths import loggable
from api.http.request_times import TIMES
from api.http.upstream_errors import UpstreamError
from api.proxy.target import Target, UpstreamLease
from api.proxy.upstream_request import UpstreamRequest
from api.telemetry.access_log import access_logger, write_line
from api.telemetry.tracing import SPAN, RequestSpan
from instance_manager.metrics.proxy import InstanceMetrics

logger = logging.getLogger("berth.proxy")


class Call:
    """Starts without a lease and instance metrics; always ends with `finish`."""

    __slots__ = ("lease", "metrics", "request", "scope", "target")

    def __init__(
        self, scope: Scope, request: UpstreamRequest, target: Target, unserved: InstanceMetrics
    ) -> None:
        self.scope = scope
        self.request = request
        self.target = target
        self.metrics = unserved
        self.lease: UpstreamLease | None = None

    def assign(self, lease: UpstreamLease, metrics: InstanceMetrics) -> None:
        """Record the instance that serves the request."""
        self.lease = lease
        self.metrics = metrics
        metrics.in_flight += 1
        if TIMES in self.scope:
            self.scope[TIMES].note_lease()

    def unassign(self) -> None:
        """Release the lease: the instance has served the request, or another one will."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None
            self.metrics.in_flight -= 1

    def finish(self, status: int) -> None:
        """Account for the finished request; `status` is the response's, or 499 for a disconnect."""
        request, metrics = self.request, self.metrics
        seconds = time.perf_counter() - request.started
        self.unassign()
        metrics.count(request.method, status)
        metrics.request_s.observe(seconds)
        if (usage := request.usage) is not None:
            key_id = caller_of(self.scope).key_id
            metrics.count_tokens(key_id, usage.prompt_tokens, usage.completion_tokens)
        if SPAN in self.scope:
            self._describe(self.scope[SPAN])
        if access_logger.isEnabledFor(logging.INFO):
            write_line(
                self.scope,
                status,
                request.started,
                request.headers.request_id,
                instance=metrics.instance_id,
                model=metrics.model,
                first_byte_s=request.first_byte_s,
                queued_s=request.queued_s,
                usage=usage,
            )

    def log_failure(self, error: UpstreamError | WrongBody) -> None:
        logger.warning(
            "instance %s, request %s, %s %s: %s",
            self.target.name,
            self.request.headers.request_id.decode(),
            self.request.method,
            loggable(self.request.target),
            error.message,
        )

    def _describe(self, span: RequestSpan) -> None:
        request, metrics = self.request, self.metrics
        span.served(
            instance_id=metrics.instance_id,
            model=metrics.model,
            key_id=caller_of(self.scope).key_id,
            request_id=request.headers.request_id,
            queued_s=request.queued_s,
            first_byte_s=request.first_byte_s,
            usage=request.usage,
        )
