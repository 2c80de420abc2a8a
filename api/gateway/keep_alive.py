"""The request field `keep_alive`, as in Ollama: how long the model stays loaded after the request."""

from __future__ import annotations

import math
import re
import reprlib
from typing import Any

from instance_manager.fleet.next_replica import AT_ONCE_S

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([+-]?)((?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+)")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_LONGEST_S = 10 * 365 * 86400.0


def idle_timeout_s(keep_alive: Any) -> float | None:
    """The instance's idle time-out in seconds (0 = never); None if `keep_alive` is None.

    A number of seconds, or a duration such as "10m" or "1h30m"; 0 unloads after the request, a negative value
    keeps the model for ever. Raises ValueError.
    """
    if keep_alive is None:
        return None
    try:
        seconds = _seconds(keep_alive)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ValueError(
            f'must be a number of seconds or a duration such as "10m", not {reprlib.repr(keep_alive)}'
        )
    if seconds < 0 or seconds > _LONGEST_S:
        return 0.0
    return max(seconds, AT_ONCE_S)


def _seconds(keep_alive: Any) -> float:
    if isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool):
        return float(keep_alive)
    if isinstance(keep_alive, str):
        try:
            seconds = float(keep_alive)
        except ValueError:
            if found := _DURATION.fullmatch(keep_alive.strip()):
                size = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(found[2]))
                return -size if found[1] == "-" else size
        else:
            return seconds
    return math.nan
