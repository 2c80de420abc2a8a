"""Which waiting model's start comes next. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WaitingModel:
    """Requests that wait for one model, which isn't awake. `priority`: lower is sooner, as in vLLM."""

    model_name: str
    since: float  # monotonic seconds, of the longest-waiting request
    priority: int = 0
    queued: int = 1


def next_to_start(waiting: Sequence[WaitingModel], ageing_s: float = 10.0) -> str | None:
    """The model whose start comes next; entries of one model count together.

    The longest wait wins. A step of priority is worth `ageing_s` seconds of waiting, so that a stream of
    urgent requests cannot hold up another model for ever. Ties go to the longer queue.
    """
    due_times: dict[str, float] = {}
    queued: dict[str, int] = {}
    for entry in waiting:
        due_time = entry.since + entry.priority * ageing_s
        due_times[entry.model_name] = min(due_time, due_times.get(entry.model_name, math.inf))
        queued[entry.model_name] = queued.get(entry.model_name, 0) + entry.queued
    return min(due_times, key=lambda name: (due_times[name], -queued[name], name), default=None)
