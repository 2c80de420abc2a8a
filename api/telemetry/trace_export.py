"""Exports spans: OpenTelemetry's SDK and its OTLP exporter, on a thread of their own.

Both are imported only if enabled. Spans that cannot be sent are dropped and logged by the SDK; no request
waits for them. The SDK reads the `OTEL_…` variables itself.
"""

from __future__ import annotations

import os
import threading

from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from instance_manager.types import Event, InstanceState

_CLOSE_TIMEOUT_S = 3.0


class TraceExport:
    """Creates the tracer; `close` sends the remaining spans."""

    def __init__(self, endpoint: str, service_name: str, version: str) -> None:
        """`endpoint`: the collector's base URL, `http://host:4318`. Raises ImportError."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # The exporter reads a URL for traces from the environment itself.
        own = (
            None
            if os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            else f"{endpoint.rstrip('/')}/v1/traces"
        )
        resource = Resource.create({"service.name": service_name, "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=own)))
        self.tracer: Tracer = self._provider.get_tracer("berth", version)

    def close(self) -> None:
        """Send the remaining spans, for at most three seconds."""
        thread = threading.Thread(target=self._provider.shutdown, name="berth-traces-close", daemon=True)
        thread.start()
        thread.join(_CLOSE_TIMEOUT_S)


class InstanceSpans:
    """A span for each start and wake-up of an instance. `on_event` is a listener for the event log."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._begun: dict[str, tuple[str, float]] = {}  # by instance: the span's name and start

    def on_event(self, event: Event) -> None:
        """Begin or end a span on an instance's state change."""
        if event.type != "instance.state":
            return
        state, previous = event.data["status"], event.data["previous"]
        if state == InstanceState.STARTING and previous != InstanceState.HEALTH_CHECKING:
            self._begun[event.instance_id] = ("berth.instance.start", event.time)
        elif state == InstanceState.WAKING:
            self._begun[event.instance_id] = ("berth.instance.wake", event.time)
        elif not InstanceState(state).is_pending and event.instance_id in self._begun:
            self._end(event, *self._begun.pop(event.instance_id))

    def _end(self, event: Event, name: str, since: float) -> None:
        attributes = {
            "berth.instance.id": event.instance_id,
            "gen_ai.request.model": str(event.data["model_name"]),
            "berth.instance.state": str(event.data["status"]),
        }
        span = self._tracer.start_span(
            name, kind=SpanKind.INTERNAL, attributes=attributes, start_time=int(since * 1e9)
        )
        if event.data["status"] == InstanceState.FAILED:
            error = event.data.get("error", {})
            span.set_attribute("error.type", str(error.get("class", "unknown")))
            span.set_status(Status(StatusCode.ERROR, str(error.get("message", ""))))
        span.end(int(event.time * 1e9))
