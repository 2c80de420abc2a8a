"""Sends log lines to an OpenTelemetry collector: the message as the body, the extra fields as attributes.

The SDK reads the other `OTEL_…` variables itself. Imported only when needed.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Mapping

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from log_output.json_format import extra_fields

_SEVERITIES: Mapping[int, tuple[SeverityNumber, str]] = {
    logging.DEBUG: (SeverityNumber.DEBUG, "DEBUG"),
    logging.INFO: (SeverityNumber.INFO, "INFO"),
    logging.WARNING: (SeverityNumber.WARN, "WARN"),
    logging.ERROR: (SeverityNumber.ERROR, "ERROR"),
    logging.CRITICAL: (SeverityNumber.FATAL, "FATAL"),
}


class OtlpSink:
    """A LogSink. The exporter itself retries for ten seconds; after that, lines are lost."""

    def __init__(self, endpoint: str, service_name: str, version: str) -> None:
        """`endpoint`: the collector's base URL, `http://host:4318`."""
        own = (
            None if os.environ.get("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT") else f"{endpoint.rstrip('/')}/v1/logs"
        )
        self._exporter = OTLPLogExporter(endpoint=own)
        self._resource = Resource.create({"service.name": service_name, "service.version": version})

    def send(self, records: list[logging.LogRecord]) -> int:
        """Returns how many were lost."""
        result = self._exporter.export([self._described(record) for record in records])
        return 0 if result is LogRecordExportResult.SUCCESS else len(records)

    def close(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _described(self, record: logging.LogRecord) -> ReadableLogRecord:
        number, text = _SEVERITIES.get(record.levelno, (SeverityNumber.INFO, record.levelname))
        attributes = {name: _attribute(value) for name, value in extra_fields(record).items()}
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            attributes["exception.type"] = kind.__qualname__
            attributes["exception.message"] = str(error)
            attributes["exception.stacktrace"] = "".join(traceback.format_exception(error))
        described = LogRecord(
            timestamp=int(record.created * 1e9),
            observed_timestamp=time.time_ns(),
            severity_number=number,
            severity_text=text,
            body=record.getMessage(),
            attributes=attributes,
        )
        return ReadableLogRecord(described, self._resource, InstrumentationScope(record.name))


def _attribute(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)
