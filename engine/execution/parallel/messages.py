"""What rank 0 tells the other ranks. Plain data; all ranks obey the same messages in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from engine.config import EngineConfig
from engine.core.batch import SequenceInput
from engine.core.sleep import Part
from engine.models.decoder_config import DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What one rank needs to load its share of the model."""

    rank: int
    size: int
    config: EngineConfig  # the model's directory is resolved
    model_config: DecoderConfig
    dtype: torch.dtype
    device: torch.device
    num_threads: int  # on a CPU
    rendezvous: Path
    step_timeout_s: float
    log_level: int


class Connect(NamedTuple):
    """The weights are loaded everywhere: meet for collective operations. Answered."""


class MakeCache(NamedTuple):
    """Have a KV cache of so many blocks, in place of any other. Answered with the memory in use."""

    num_blocks: int
    window_blocks: Mapping[int, int]  # see Runner in engine/core/batch.py


class MeasureBudget(NamedTuple):
    """Answered with the memory that this rank's GPU has left for a KV cache."""


class Run(NamedTuple):
    """Run the model, and the head for rows that sample."""

    number: int  # of the step
    inputs: Sequence[SequenceInput]
    adapters: Sequence[bytes | None] = ()  # keys, by input; none at all if no input has one
    dropped: Sequence[bytes] = ()  # keys of adapters that no request has any more


class Score(NamedTuple):
    """Run the head for some of a step's scored rows."""

    number: int
    start: int
    stop: int


class AdapterMessage(NamedTuple):
    """Hold an adapter. On a connection of its own, as a step need not wait for it. Answered."""

    key: bytes
    name: str = ""
    directory: Path | None = None  # None: drop it


class Sleep(NamedTuple):
    """Answered with the memory in use."""

    level: int


class WakeUp(NamedTuple):
    """Answered with the memory in use."""

    parts: frozenset[Part]


Message = Connect | MakeCache | MeasureBudget | Run | Score | Sleep | WakeUp
