"""Exports traces and copies of log lines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from api.telemetry.trace_export import TraceExport
from composition.version import VERSION
from configs.settings import Settings
from log_output.remote_logs import RemoteLogs
from log_output.setup import send_to_otlp, send_to_syslog

logger = logging.getLogger("berth")


class Telemetry:
    """Exports traces and copies of log lines; Berth serves without it."""

    def __init__(self, settings: Settings) -> None:
        self.traces: TraceExport | None = None
        self._logs: list[RemoteLogs] = []
        if settings.log_syslog is not None:
            self._logs.append(send_to_syslog(settings.log_syslog))
        if (endpoint := settings.otel_exporter_otlp_endpoint) is not None:
            name = settings.otel_service_name
            try:
                if settings.log_otlp:
                    self._logs.append(send_to_otlp(endpoint, name, VERSION))
                self.traces = TraceExport(endpoint, name, VERSION)
            except ImportError as error:
                logger.error(
                    "OTEL_EXPORTER_OTLP_ENDPOINT is set, but %s isn't installed: nothing is sent there. "
                    "Install it: pip install -r requirements.txt",
                    error.name,
                )

    def close(self) -> None:
        """Send the rest in parallel; takes up to three seconds if a receiver doesn't respond."""
        finishes: list[Callable[[], None]] = [handler.finish for handler in self._logs]
        if self.traces is not None:
            finishes.append(self.traces.close)
        threads = [threading.Thread(target=finish) for finish in finishes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
