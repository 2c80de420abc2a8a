"""Records as tables: rows decided here, drawn by Rich."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.units import NOTHING, ago, ahead, duration, size

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, Any]

INSTANCE_COLUMNS = ("NAME", "MODEL", "STATUS", "PORT", "PID", "MEMORY", "IN FLIGHT", "IDLE UNTIL", "AGE")
MODEL_COLUMNS = ("NAME", "STATUS", "SIZE", "MEMORY", "ENGINE", "SOURCE", "LAST USED", "ALIASES")
_RIGHT = frozenset({"PORT", "PID", "MEMORY", "IN FLIGHT", "SIZE"})
_STYLES = {"running": "green", "sleeping": "blue", "failed": "red", "stopped": "dim"}
_ON_ITS_WAY = "yellow"


def instance_row(record: Record, now: float) -> tuple[str, ...]:
    """One line of `berth ps`; `now` is in seconds since the epoch."""
    return (
        record["instance_id"],
        record["model_name"],
        _instance_status(record),
        _shown(record["port"]),
        _shown(record["pid"]),
        size(record["memory_bytes"]),
        _shown(record["in_flight"]),
        _idle_until(record, now),
        duration(now - record["created_at"]),
    )


def model_row(record: Record, now: float) -> tuple[str, ...]:
    """One line of `berth list`."""
    marks = " (pinned)" if record["pinned"] else ""
    return (
        record["name"],
        record["status"] + marks,
        size(record["size_bytes"]),
        size(record["memory_bytes"]),
        _shown(record["engine"]),
        record["source"],
        ago(record["last_used"], now),
        ", ".join(record["aliases"]) or NOTHING,
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines, its states coloured; what is too long is cut, never wrapped."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        justify = "right" if column in _RIGHT else "left"
        drawn.add_column(column, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    status = columns.index("STATUS")
    for row in rows:
        cells = [Text(printable(cell)) for cell in row]
        cells[status].stylize(_STYLES.get(row[status].split()[0], _ON_ITS_WAY))
        drawn.add_row(*cells)
    return drawn


def details(record: Record) -> Table:
    """Every field of a record, one a line; what is empty is left out."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    for key, value in record.items():
        if value not in (None, [], {}):
            drawn.add_row(key, Text(printable(_field(key, value))))
    return drawn


def printable(text: str) -> str:
    """Without what would steer the terminal; new lines and tabs stay."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _field(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{size(value)} ({value})"
    if key in _MOMENTS:
        return _moment(value)
    if key == "error":
        return f"{value.get('class')}: {value.get('message')}"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False)


_MOMENTS = frozenset(
    {"created_at", "ready_at", "expires_at", "last_active", "last_used", "modified", "pid_start_time"}
)


def _moment(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _instance_status(record: Record) -> str:
    level = record.get("sleep_level")
    return f"{record['status']} {level}" if level else str(record["status"])


def _idle_until(record: Record, now: float) -> str:
    if record["status"] != "running":
        return NOTHING
    if record["expires_at"] is None:
        return "busy" if record["in_flight"] and record["timeout"] else "never"
    return ahead(record["expires_at"], now)


def _shown(value: Any) -> str:
    return NOTHING if value is None else str(value)
