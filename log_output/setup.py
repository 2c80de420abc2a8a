"""Sets up Berth's own log: text for people or JSON for machines. Engines' output goes to other files."""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
import sys
from pathlib import Path
from typing import Any

from configs.syslog_address import SyslogAddress
from log_output.json_format import JsonFormatter
from log_output.remote_logs import RemoteLogs
from log_output.syslog import SyslogSink


class RateLimitFilter(logging.Filter):
    """Lets a repeated line of the loggers with these names through once a minute."""

    def __init__(self, names: tuple[str, ...] = ("opentelemetry.",), interval_s: float = 60.0) -> None:
        super().__init__()
        self._names = names
        self._interval_s = interval_s
        self._logged_at: dict[tuple[str, str], float] = {}  # by logger and message before its arguments

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(self._names):
            return True
        key = (record.name, str(record.msg))
        if record.created - self._logged_at.get(key, -self._interval_s) < self._interval_s:
            return False
        self._logged_at[key] = record.created
        return True


class RotatedFile(logging.handlers.WatchedFileHandler):
    """A log file that may be renamed or truncated at any time: the next line goes to a file of the old name.

    If that can't be written, lines are lost; stderr reports it once, and the logging call isn't affected.
    """

    _has_failed = False
    _was_reported = False

    def emit(self, record: logging.LogRecord) -> None:
        self._has_failed = False
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)
        if not self._has_failed:
            self._was_reported = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Called from within the error's handler."""
        self._has_failed = True
        if not self._was_reported:
            self._was_reported = True
            error = sys.exc_info()[1]
            problem = error.strerror if isinstance(error, OSError) else repr(error)
            sys.stderr.write(f"berth: LOG_FILE={self.baseFilename}: {problem}; lines are missing there\n")


def configure_logging(
    log_format: str,
    *,
    level: str = "info",
    debug: bool = False,
    access_log: bool = False,
    file: Path | None = None,
) -> None:
    """Send everything to stderr, and to `file` if given, in this format.

    `debug` implies access lines, which cost time. Raises OSError if the file can't be opened.
    """
    level = "DEBUG" if debug else level.upper()
    debug = level == "DEBUG"
    formatter = (
        {"()": JsonFormatter}
        if log_format == "json"
        else {"format": "%(asctime)s %(levelname)-7s %(message)s"}
    )
    handlers: dict[str, dict[str, Any]] = {
        "stderr": {"class": "logging.StreamHandler", "formatter": "default", "filters": ["few"]}
    }
    if file is not None:
        opened = RotatedFile(file, encoding="utf-8")
        handlers["file"] = {"()": lambda: opened, "formatter": "default", "filters": ["few"]}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"default": formatter},
            "filters": {"few": {"()": RateLimitFilter}},
            "handlers": handlers,
            "root": {"handlers": list(handlers), "level": "WARNING"},
            "loggers": {
                "berth": {"level": level},
                "berth.access": {"level": "INFO" if debug or access_log else "WARNING"},
                # At lower levels they log what they receive: queries of WebSockets, and headers with keys.
                "uvicorn": {"level": "WARNING"},
                "websockets": {"level": "WARNING"},
            },
        }
    )


def send_to_syslog(address: str) -> RemoteLogs:
    """Also send everything to a syslog server, as JSON. Raises ValueError for an invalid address."""
    sink = SyslogSink(SyslogAddress.parse(address), JsonFormatter())
    return _added(RemoteLogs(sink, f"LOG_SYSLOG={address}"))


def send_to_otlp(endpoint: str, service_name: str, version: str) -> RemoteLogs:
    """Also send everything to an OpenTelemetry collector. Raises ImportError without its packages."""
    from log_output.otlp import OtlpSink  # its packages are optional

    return _added(RemoteLogs(OtlpSink(endpoint, service_name, version), f"LOG_OTLP to {endpoint}"))


def _added(handler: RemoteLogs) -> RemoteLogs:
    logging.getLogger().addHandler(handler)
    return handler
