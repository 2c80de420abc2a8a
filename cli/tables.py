"""Records as rows of tables and as pages. cli/layout.py fits them to the terminal."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.layout import Column, drawn, fitting
from cli.units import NOTHING, ago, ahead, duration, size

if TYPE_CHECKING:
    from rich.text import Text

Record = Mapping[str, Any]
Row = tuple[str, ...]

INSTANCE_COLUMNS = (
    Column("NAME"),
    Column("ID"),
    Column("STATUS"),
    Column("PORT", is_right=True),
    Column("LAST USED"),
    Column("IDLE UNTIL", rank=1),
    Column("OWNER", rank=1, only_if_any=True),
    Column("MEMORY", rank=2, is_right=True),
    Column("IN FLIGHT", rank=3, is_right=True),
    Column("AGE", rank=4),
    Column("PID", rank=5, is_right=True),
    Column("MODEL", rank=6),
)
PROBLEM = "PROBLEM"
MODEL_COLUMNS = (
    Column("NAME"),
    Column("STATUS"),
    Column("SIZE", rank=3, is_right=True),
    Column("LAST USED", rank=1),
    Column("MEMORY", rank=4, is_right=True),
    Column("ENGINE", rank=5),
    Column("SOURCE", rank=6),
    Column("ALIASES", rank=2, only_if_any=True),
    Column(PROBLEM, rank=7, only_if_any=True),
)
ENTRY_COLUMNS = (
    Column("NAME"),
    Column("STATUS"),
    Column("CONTEXT", rank=1, is_right=True),
    Column(PROBLEM, rank=2, only_if_any=True),
)
_STYLES = {"running": "green", "sleeping": "blue", "failed": "red", "stopped": "dim", "unsupported": "red"}
_IN_TRANSITION = "yellow"
_CONTROLS = frozenset({"Cc", "Cs", "Zl", "Zp"})  # categories: control characters, surrogates, line separators
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # of the text's direction


def instance_row(record: Record, now: float) -> Row:
    """One line of `berth ps`; `now` is in seconds since the epoch."""
    return (
        record.get("profile") or record["served_model_name"],
        record["instance_id"],
        _instance_status(record),
        _shown(record["port"]),
        ago(record["last_active"], now),
        _idle_until(record, now),
        _shown(record.get("owner")),
        size(record["memory_bytes"]),
        _shown(record["in_flight"]),
        duration(now - record["created_at"]),
        _shown(record["pid"]),
        record["model_name"],
    )


def model_row(record: Record, now: float) -> Row:
    """One line of `berth list`."""
    mark = " (pinned)" if record["pinned"] else ""
    return (
        record["name"],
        model_status(record) + mark,
        size(record["size_bytes"]),
        ago(record["last_used"], now),
        size(record["memory_bytes"]),
        _shown(record["engine"]),
        record["source"],
        ", ".join(record["aliases"]) or NOTHING,
        problem_of(record) or NOTHING,
    )


def entry_row(entry: Record) -> Row:
    """One line of `berth list` for a key that only allows requests: OpenAI's entry has fewer fields."""
    status = model_status(entry) if "state" in entry else NOTHING
    return entry["id"], status, _shown(entry.get("max_model_len")), _shown(entry.get("problem"))


def problem_of(record: Record) -> str | None:
    """Why a model can't run, or why its last start failed."""
    if problem := record.get("problem"):
        return str(problem)
    error = record.get("error")
    if not error or record["state"] != "failed":
        return None
    return str(error["message"]).removeprefix(f"model {record['name']!r} ")


def table(columns: Sequence[Column], rows: Iterable[Row], width: int) -> Text:
    """A table without lines and with coloured states."""
    clean = [tuple(_one_line(cell) for cell in row) for row in rows]
    status = [column.title for column in columns].index("STATUS")
    styles = [_STYLES.get(row[status].split(" ")[0], _IN_TRANSITION) for row in clean]
    return drawn(columns, clean, styles, width)


def model_table(records: Sequence[Record], now: float, width: int) -> Text:
    """The models; problems that don't fit into their lines go below the table."""
    return _with_problems(MODEL_COLUMNS, [model_row(record, now) for record in records], width)


def entry_table(entries: Sequence[Record], width: int) -> Text:
    """The same for OpenAI's entries."""
    return _with_problems(ENTRY_COLUMNS, [entry_row(entry) for entry in entries], width)


def _with_problems(columns: Sequence[Column], rows: Sequence[Row], width: int) -> Text:
    """A table whose first column is the name and whose last is the problem."""
    text = table(columns, rows, width)
    clean = [tuple(_one_line(cell) for cell in row) for row in rows]
    kept = fitting(columns, clean, width)
    if kept is not None and len(columns) - 1 not in kept:
        for name, *_, problem in clean:
            if problem != NOTHING:
                text.append(f"\n\n{name}: ", "bold")
                text.append(problem)
    return text


def details(record: Record) -> Text:
    """All fields of a record, one per line, without empty ones."""
    from rich.text import Text

    shown = {key: _field(key, value) for key, value in record.items() if value not in (None, [], {}, "")}
    widest = max((len(key) for key in shown), default=0) + 2
    text = Text()
    for key, value in shown.items():
        text.append(key.ljust(widest), "bold")
        text.append(printable(value).replace("\n", "\n" + " " * widest) + "\n")
    text.rstrip()
    return text


def printable(text: str) -> str:
    """Without characters that control the terminal, except newlines and tabs."""
    if text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if char not in "\n\t" and (char in _OVERRIDES or unicodedata.category(char) in _CONTROLS)
        else char
        for char in text
    )


def _one_line(text: str) -> str:
    return printable(" ".join(text.splitlines()).replace("\t", " "))


def _field(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{size(value)} ({value})"
    if key in _TIMESTAMPS:
        return _timestamp(value)
    if key == "error":
        tail = value.get("log_tail") or []
        return "\n".join([f"{value.get('class')}: {value.get('message')}", *tail])
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False)


_TIMESTAMPS = frozenset(
    {"created_at", "ready_at", "expires_at", "last_active", "last_used", "modified", "pid_start_time"}
)


def _timestamp(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _instance_status(record: Record) -> str:
    level = record.get("sleep_level")
    return f"{record['status']} {level}" if level else str(record["status"])


def model_status(record: Record) -> str:
    """A stopped model that no engine can run is 'unsupported'; one whose last start failed is 'failed'."""
    is_down = record["state"] == "stopped"
    return "unsupported" if is_down and record.get("problem") else str(record["state"])


def _idle_until(record: Record, now: float) -> str:
    if record["status"] != "running":
        return NOTHING
    if record["expires_at"] is None:
        return "busy" if record["in_flight"] and record["timeout"] else "never"
    return ahead(record["expires_at"], now)


def _shown(value: Any) -> str:
    return NOTHING if value is None else str(value)
