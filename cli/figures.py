"""The statistics of a benchmark. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_PERCENTILES = (50, 95, 99)
TIMES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "itl_ms": "inter-token time",
    "e2e_ms": "end-to-end time",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request; times in seconds from its start. Tokens as counted by the server, None = not reported."""

    ended_s: float
    arrivals_s: tuple[float, ...] = ()  # of each piece of the response
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None

    @property
    def first_s(self) -> float | None:
        return self.arrivals_s[0] if self.arrivals_s else None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first."""
        if not self.output_tokens or self.output_tokens < 2 or len(self.arrivals_s) < 2:
            return None
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.output_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Times between tokens; if pieces don't hold one token each, the times between pieces are divided."""
        pairs = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        gaps = [later - earlier for earlier, later in pairs]
        if not gaps or not self.output_tokens or self.output_tokens < 2:
            return gaps
        tokens_per_piece = (self.output_tokens - 1) / len(gaps)
        return [gap / tokens_per_piece for gap in gaps]


def summary(outcomes: Sequence[Outcome], duration_s: float) -> dict[str, Any]:
    """All statistics of the successful requests. Rates are per second; unknown values are None."""
    succeeded = [one for one in outcomes if one.error is None]
    tokens_in = _total([one.input_tokens for one in succeeded])
    tokens_out = _total([one.output_tokens for one in succeeded])
    both = None if tokens_in is None or tokens_out is None else tokens_in + tokens_out
    return {
        "completed": len(succeeded),
        "failed": len(outcomes) - len(succeeded),
        "errors": dict(Counter(one.error for one in outcomes if one.error is not None)),
        "duration_s": duration_s,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "requests_per_s": _rate(len(succeeded), duration_s),
        "input_tokens_per_s": _rate(tokens_in, duration_s),
        "output_tokens_per_s": _rate(tokens_out, duration_s),
        "total_tokens_per_s": _rate(both, duration_s),
        "ttft_ms": _spread([one.first_s for one in succeeded]),
        "tpot_ms": _spread([one.tpot_s for one in succeeded]),
        "itl_ms": _spread([gap for one in succeeded for gap in one.gaps_s]),
        "e2e_ms": _spread([one.ended_s for one in succeeded]),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated between adjacent values, as in NumPy. `values`: sorted and not empty."""
    position = (len(values) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (position - below)


def _spread(times_s: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and percentiles in milliseconds."""
    known = sorted(1000 * time_s for time_s in times_s if time_s is not None)
    if not known:
        return None
    return {"mean": statistics.fmean(known)} | {f"p{each}": percentile(known, each) for each in _PERCENTILES}


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _rate(count: int | None, duration_s: float) -> float | None:
    return None if count is None or duration_s <= 0 else count / duration_s
