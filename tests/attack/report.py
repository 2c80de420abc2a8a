"""The results of the attacks: a table for people, JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.attack.measurement import Measurement, faults

_MIB = 1 << 20
_MOST_SHOWN = 160
_HEADINGS = (
    "attack", "who", "gap before", "gap", "over", "Berth +", "engine +", "body", "took", "status", "verdict"
)  # fmt: skip


@dataclass(slots=True)
class Result:
    """The result of one attack: the attempt that counts."""

    group: str
    name: str
    who: str
    measurement: Measurement = field(default_factory=Measurement)
    num_attempts: int = 1
    skipped: str = ""

    @property
    def faults(self) -> list[str]:
        return faults(self.measurement)

    @property
    def verdict(self) -> str:
        return "skipped" if self.skipped else "FAILED" if self.faults else "held"

    def as_json(self) -> dict[str, Any]:
        measurement = self.measurement
        return {
            "field": self.group,
            "attack": self.name,
            "who": self.who,
            "verdict": self.verdict,
            "undisturbed_gap_s": round(measurement.undisturbed_s, 4),
            "gap_s": round(measurement.gap_s, 4),
            "over_s": round(measurement.over_s, 4),
            "took_s": round(measurement.took_s, 3),
            "body_bytes": measurement.body_bytes,
            "berth_grown_bytes": measurement.berth_bytes,
            "engine_grown_bytes": measurement.engine_bytes,
            "statuses": dict(measurement.statuses),
            "attempts": self.num_attempts,
            "notes": measurement.notes,
            "problems": self.faults,
            "skipped": self.skipped,
        }


def table(results: Sequence[Result]) -> str:
    """Markdown, aligned."""
    rows = [_HEADINGS, *(_row(one) for one in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _row(result: Result) -> tuple[str, ...]:
    measurement = result.measurement
    return (
        result.name,
        result.who,
        _ms(measurement.undisturbed_s),
        _ms(measurement.gap_s),
        _ms(measurement.over_s),
        _mib(measurement.berth_bytes),
        _mib(measurement.engine_bytes),
        _mib(measurement.body_bytes),
        f"{measurement.took_s:.1f} s",
        _statuses(measurement.statuses),
        result.verdict,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB" if size >= _MIB else f"{size / 1024:.0f} KiB" if size else "–"


def _statuses(statuses: Counter[str]) -> str:
    return ", ".join(
        status if number == 1 else f"{number} × {status}" for status, number in statuses.most_common(4)
    )


def line(result: Result) -> str:
    """A progress line for one result, and one line for each of its faults."""
    measurement = result.measurement
    statuses = _statuses(measurement.statuses) or "–"
    text = (
        f"{result.verdict:<7} {_ms(measurement.over_s):>8} over  {statuses:<20} {result.group}: {result.name}"
    )
    if result.skipped:
        text += f" ({result.skipped})"
    notes = [f"    {note}" for note in measurement.notes]
    return "\n".join([text, *notes, *(f"    {fault[: _MOST_SHOWN * 4]}" for fault in result.faults)])


def summary(results: Sequence[Result], seconds: float) -> str:
    """A summary in one line."""
    verdicts = Counter(one.verdict for one in results)
    counts = ", ".join(f"{verdicts[one]} {one}" for one in ("held", "FAILED", "skipped"))
    return f"{counts}, {seconds:.0f} s"
