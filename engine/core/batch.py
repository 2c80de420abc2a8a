"""One step's work, between scheduler and runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from engine.core.logits_processors import LogitsProcessors
from engine.core.sleep import HeldMemory, Part
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
    samples: bool  # whether the last position's logits are to be sampled (False for an unfinished prefill)
    output_position: int  # index, among the output tokens, of the token that would be sampled
    params: SamplingParams
    edits: LogitsProcessors | None = None  # what the parameters and the tokens so far change of the logits
    constraint: TokenConstraint | None = None
    # The prompt's tokens whose logprobs this step brings: each that follows one of the positions that run.
    scored_token_ids: Sequence[int] = ()
    scored_from: int = 0  # index, in `token_ids`, of the row that gives the first of them


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work; `sequences` keeps those that run one token before longer chunks."""

    sequences: Sequence[ScheduledSequence] = field(default_factory=tuple)

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.token_ids) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave: a token per sequence, and by index in the batch what only some sequences have."""

    tokens: Sequence[int | None]  # None where none is due, or where it failed
    logprobs: Mapping[int, PositionLogprobs] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, Sequence[PositionLogprobs]] = field(default_factory=dict)
    failures: Mapping[int, EngineError] = field(default_factory=dict)  # why a sequence ends; others go on
    late: Set[int] = frozenset()  # whose constraint wasn't ready: their last token is to run again


class Runner(Protocol):
    """Runs batches on a device. The core's only way to the model; tests put a fake here."""

    num_blocks: int  # KV-cache blocks there are
    block_size: int  # tokens in a block
    vocab_size: int  # logits there are for each position

    def execute(self, batch: Batch) -> StepResult:
        """Run one step. To run a part of a batch again after an error is safe.

        Raises DeviceLost where nothing can work any more.
        """
        ...

    def sleep(self, level: int) -> None:
        """As engine/core/sleep_controller.py's Sleeps."""
        ...

    def wake_up(self, parts: Set[Part]) -> None:
        """As engine/core/sleep_controller.py's Sleeps."""
        ...

    @property
    def memory(self) -> HeldMemory:
        """What the runner holds now; may be read by any thread."""
        ...
