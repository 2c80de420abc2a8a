"""Berth's own log lines: text for people, JSON for machines. Engines' output has files of its own."""

from __future__ import annotations

import json
import logging
import logging.config
from datetime import UTC, datetime

_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line; whatever a call gave as `extra` becomes a field."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD_FIELDS}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


def configure_logging(log_format: str, *, debug: bool, access_log: bool = False) -> None:
    """Send everything to stderr in the format asked for. Access lines cost: `debug` has them anyhow."""
    formatter = (
        {"()": JsonFormatter}
        if log_format == "json"
        else {"format": "%(asctime)s %(levelname)-7s %(message)s"}
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"default": formatter},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "default"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {
                "berth": {"level": "DEBUG" if debug else "INFO"},
                "berth.access": {"level": "INFO" if debug or access_log else "WARNING"},
                "uvicorn": {"level": "INFO" if debug else "WARNING"},
            },
        }
    )
