"""Sizes and times in readable units."""

from __future__ import annotations

NOTHING = "–"


def size(num_bytes: int | None) -> str:
    """In binary units, with up to three digits."""
    if num_bytes is None:
        return NOTHING
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration(seconds: float | None) -> str:
    """In the largest unit with a value of at least one."""
    if seconds is None:
        return NOTHING
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{int(seconds // length_s)} {unit}"
    return f"{max(0, int(seconds))} s"


def ago(moment: float | None, now: float) -> str:
    """A past moment (seconds since the epoch)."""
    return NOTHING if moment is None else f"{duration(max(0.0, now - moment))} ago"


def ahead(moment: float | None, now: float) -> str:
    """A future moment (seconds since the epoch)."""
    return NOTHING if moment is None else f"in {duration(max(0.0, moment - now))}"
