"""An OpenTelemetry collector in outline: takes OTLP over HTTP as protobuf, and keeps what it was sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

DEADLINE_S = 30.0


class Collector:
    """`spans` and `log_records` as dictionaries; `status` is what it answers."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.log_records: list[dict[str, Any]] = []
        self.resources: list[dict[str, Any]] = []
        self.requests: list[dict[str, str]] = []  # the headers of each
        self.status = 200
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        with self._changed:
            self.requests.append(headers)
            if self.status == 200 and path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    self.resources.append(_values(resource.resource.attributes))
                    self.spans += [_span(one) for scope in resource.scope_spans for one in scope.spans]
            elif self.status == 200 and path == "/v1/logs":
                for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
                    self.resources.append(_values(resource.resource.attributes))
                    for scope in resource.scope_logs:
                        self.log_records += [_line(scope.scope.name, one) for one in scope.log_records]
            self._changed.notify_all()

    def wait_for(self, has_come: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(has_come, DEADLINE_S), (self.spans, self.log_records)

    def span(self, request_id: str) -> dict[str, Any]:
        """The span of the request with this id, once it has come."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self.spans if one["attributes"].get("berth.request.id") == request_id]

        self.wait_for(lambda: bool(found()))
        assert len(found()) == 1
        return found()[0]

    @contextmanager
    def running(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def _span(span: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "kind": span.kind,
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        "age_s": time.time() - span.start_time_unix_nano / 1e9,
        "attributes": _values(span.attributes),
        "events": {one.name: (one.time_unix_nano - span.start_time_unix_nano) / 1e9 for one in span.events},
        "is_error": span.status.code == 2,
    }


def _line(logger: str, record: Any) -> dict[str, Any]:
    return {
        "logger": logger,
        "severity": record.severity_text,
        "body": record.body.string_value,
        "attributes": _values(record.attributes),
    }


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
