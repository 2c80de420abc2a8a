"""One step's work, between scheduler and runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engine.core.adapter import Adapter
from engine.core.logits_processors import LogitsProcessors
from engine.core.sleep import MemoryUsage, Part
from engine.core.types import PositionLogprobs, SamplingParams, TokenConstraint
from engine.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledSequence:
    """The part of one sequence that runs in this step. Filled by the scheduler, read by the runner.

    `block_ids` is the scheduler's own list, not a copy: it grows at the next step.
    """

    request_id: str
    token_ids: Sequence[int]  # the tokens to run now: a chunk of the prompt, or the last sampled token
    start: int  # position of token_ids[0], = tokens whose keys and values are in the cache already
    block_ids: Sequence[int]  # the block table: covers at least positions 0 .. start + len(token_ids) - 1
    samples: bool  # whether to sample the last position's logits (False for an unfinished prefill)
    output_position: int  # index, among the output tokens, of the token that would be sampled
    params: SamplingParams
    logits_processors: LogitsProcessors | None = None
    constraint: TokenConstraint | None = None
    adapter: Adapter | None = None
    # The prompt tokens whose logprobs this step computes: those that follow the positions that run.
    scored_token_ids: Sequence[int] = ()
    scored_from: int = 0  # index, in `token_ids`, of the row that scores the first of them


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work; `sequences` has those that run one token before longer chunks."""

    sequences: Sequence[ScheduledSequence] = field(default_factory=tuple)

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.token_ids) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step's results: a token per sequence and, by index in the batch, what only some sequences have."""

    tokens: Sequence[int | None]  # None where none is due, or where the sequence failed
    logprobs: Mapping[int, PositionLogprobs] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, Sequence[PositionLogprobs]] = field(default_factory=dict)
    failures: Mapping[int, EngineError] = field(default_factory=dict)  # why a sequence ends; others continue
    late: Set[int] = frozenset()  # sequences whose constraint wasn't ready: their last token runs again


class Runner(Protocol):
    """Runs batches on a device. The core's only way to the model; tests put a fake here."""

    num_blocks: int  # KV-cache blocks
    block_size: int  # tokens in a block
    vocab_size: int  # logits per position

    def execute(self, batch: Batch) -> StepResult:
        """Run one step. Running part of a batch again after an error is safe.

        Raises DeviceLost if no later step can work.
        """
        ...

    def sleep(self, level: int) -> None:
        """See Sleeps in engine/core/sleep_controller.py."""
        ...

    def wake_up(self, parts: Set[Part]) -> None:
        """See Sleeps in engine/core/sleep_controller.py."""
        ...

    @property
    def memory(self) -> MemoryUsage:
        """Memory in use now; may be read by any thread."""
        ...

    def read_adapter(self, name: str, directory: Path) -> Adapter:
        """A LoRA adapter for requests; safe in any thread. Raises CheckpointError and ConfigError."""
        ...
