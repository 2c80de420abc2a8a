"""What can sleep, at which levels, and the memory used meanwhile. Pure: no torch, no threads, no HTTP."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum

WEIGHTS_KEPT = 1  # level 1: the KV cache is freed; a GPU's weights are moved to main memory
WEIGHTS_DROPPED = 2  # level 2: the weights are freed too
SLEEP_LEVELS = (WEIGHTS_KEPT, WEIGHTS_DROPPED)


class SleepMode(StrEnum):
    """What happens to running requests when the engine is put to sleep; vLLM's names."""

    ABORT = "abort"
    WAIT = "wait"


class Part(StrEnum):
    """What sleeps and can be woken separately; vLLM's names."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"


ALL_PARTS = frozenset(Part)


@dataclass(frozen=True, slots=True)
class SleepState:
    level: int = 0  # 0 awake, else one of SLEEP_LEVELS
    asleep: frozenset[Part] = frozenset()

    def after_sleep(self, level: int) -> SleepState:
        """All parts sleep; weights that were dropped stay dropped, whatever the level."""
        deepest = max(level, self.level) if Part.WEIGHTS in self.asleep else level
        return SleepState(deepest, ALL_PARTS)

    def after_wake_up(self, parts: Set[Part]) -> SleepState:
        left = self.asleep - parts
        if not left:
            return SleepState()
        return SleepState(self.level if Part.WEIGHTS in left else WEIGHTS_KEPT, left)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUsage:
    """Bytes of tensors. On a CPU, a KV cache uses memory only as it is written."""

    device: str  # "cpu", "cuda:0", …
    weights: int  # on the device
    kv_cache: int  # on the device
    host_weights: int = 0  # a GPU's weights, asleep in main memory
