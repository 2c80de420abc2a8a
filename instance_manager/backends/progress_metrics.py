"""Which of an engine's own metrics show that it makes progress. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class ProgressMetrics:
    """Names of metrics. `|` combines two sets, for a server that may be either."""

    pending: tuple[str, ...]  # gauges: requests that it works on, or that wait in it
    steps: tuple[str, ...]  # counters that grow with each step: tokens read or generated, iterations

    def __or__(self, other: ProgressMetrics) -> ProgressMetrics:
        return ProgressMetrics(
            tuple(dict.fromkeys(self.pending + other.pending)), tuple(dict.fromkeys(self.steps + other.steps))
        )

    def read(self, page: bytes) -> bytes | None:
        """The counters on a page of metrics, as printed; None if there are none, or no pending requests."""
        has_work = any(map(_is_positive, _values_of(self.pending).findall(page)))
        return b" ".join(_values_of(self.steps).findall(page)) or None if has_work else None


@lru_cache
def _values_of(names: tuple[str, ...]) -> re.Pattern[bytes]:
    """Matches the values of all samples with these names, whatever their labels."""
    either = "|".join(map(re.escape, names))
    return re.compile(rf"^(?:{either})(?:\{{[^}}\n]*\}})? (\S{{1,64}})".encode(), re.MULTILINE)


def _is_positive(value: bytes) -> bool:
    try:
        return float(value) > 0
    except ValueError:
        return False
