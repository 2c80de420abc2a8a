"""Which calls put an engine to sleep and wake it, in a safe order. Pure: others send them.

The routes here are vLLM's, which other servers have too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

_STATUS_TIMEOUT_S = 5.0
SLEEP_TIMEOUT_S = 120.0
WAKE_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One HTTP request to an engine."""

    path: str
    timeout_s: float
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    method: str = "POST"


class SleepStyle:
    """For an engine that one call puts to sleep and one call wakes completely."""

    status = EngineCall("/is_sleeping", _STATUS_TIMEOUT_S, method="GET")

    def to_sleep(self, level: int) -> Sequence[EngineCall]:
        return (EngineCall("/sleep", SLEEP_TIMEOUT_S, {"level": str(level)}),)

    def to_wake(self, level: int, served_name: str) -> Sequence[EngineCall]:
        """From `level`. After the last call it must be able to serve."""
        return (EngineCall("/wake_up", WAKE_TIMEOUT_S),)

    def reads_asleep(self, body: bytes) -> bool:
        """Whether the answer to `status` says that it sleeps. Raises ValueError, KeyError or TypeError."""
        return bool(from_json(body)["is_sleeping"])
