"""One uniform number per token, from its request's seed and its position alone.

A counter-based generator: nothing is stored between tokens, so batching, preemption and restarts can't
change a request's stream. The mixing function is SplitMix64's (Steele, Lea & Flood 2014).
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, for output position `position` of a request seeded `seed`."""
    state = _mix((seed + _GOLDEN_GAMMA) & _MASK)  # seeds 0, 1, 2 … must not give shifted copies of one stream
    return (_mix((state + (position + 1) * _GOLDEN_GAMMA) & _MASK) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
