"""What can sleep, how deep, and what the engine holds meanwhile. Pure: no torch, no threads, no HTTP."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum

WEIGHTS_KEPT = 1  # level 1: the KV cache is given back; a GPU's weights are moved to main memory
WEIGHTS_DROPPED = 2  # level 2: the weights are given back, too
SLEEP_LEVELS = (WEIGHTS_KEPT, WEIGHTS_DROPPED)


class SleepMode(StrEnum):
    """What becomes of the requests that run when the engine is sent to sleep; vLLM's names."""

    ABORT = "abort"
    WAIT = "wait"


class Part(StrEnum):
    """What sleeps and may be woken by itself; vLLM's names."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"


ALL_PARTS = frozenset(Part)


@dataclass(frozen=True, slots=True)
class SleepState:
    level: int = 0  # 0 awake, else one of SLEEP_LEVELS
    asleep: frozenset[Part] = frozenset()

    def after_sleep(self, level: int) -> SleepState:
        """All parts sleep; weights that have been dropped stay so, whatever the level."""
        deepest = max(level, self.level) if Part.WEIGHTS in self.asleep else level
        return SleepState(deepest, ALL_PARTS)

    def after_wake_up(self, parts: Set[Part]) -> SleepState:
        left = self.asleep - parts
        if not left:
            return SleepState()
        return SleepState(self.level if Part.WEIGHTS in left else WEIGHTS_KEPT, left)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUsage:
    """Bytes of tensors. On a CPU, a KV cache takes them only as it is written to."""

    device: str  # "cpu", "cuda:0", …
    weights: int  # on the device
    kv_cache: int  # on the device
    host_weights: int = 0  # a GPU's weights that sleep in main memory
