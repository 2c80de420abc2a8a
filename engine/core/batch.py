"""One step's work, between scheduler and runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from engine.core.adapter import Adapter
from engine.core.logits_processors import LogitsProcessors
from engine.core.sleep import MemoryUsage, Part
from engine.core.state_slots import SlotPair
from engine.core.types import PositionLogprobs, SamplingParams, TokenConstraint
from engine.errors import EngineError


class SequenceInput(NamedTuple):
    """What the model needs of one sequence in one step.

    Plain data that nobody changes: it can be pickled for another process, and read while later steps are
    prepared.
    """

    token_ids: Sequence[int]  # the tokens to run now: a chunk of the prompt, or the last sampled token
    start: int  # position of token_ids[0], = tokens whose keys and values are in the cache already
    block_ids: Sequence[int]  # the block table: covers at least positions 0 .. start + len(token_ids) - 1
    samples: bool  # whether to sample the last position's logits (False for an unfinished prefill)
    scored_from: int = 0  # index, in `token_ids`, of the first row whose logits score the token after it
    num_scored: int = 0  # such rows
    # The block tables in the groups of layers with a window, in the order of Runner.window_blocks. What lies
    # behind the window of the first token that runs means nothing.
    window_block_ids: tuple[Sequence[int], ...] = ()
    state_slots: SlotPair | None = None  # in a model that carries a state beside attention


class ScheduledSequence(NamedTuple):
    """The part of one sequence that runs in this step: the model's input, and what sampling needs beside it.

    Filled by the scheduler, read by the runner.
    """

    input: SequenceInput
    request_id: str
    params: SamplingParams
    output_position: int = 0  # index, among the output tokens, of the token that would be sampled
    logits_processors: LogitsProcessors | None = None
    constraint: TokenConstraint | None = None
    # The prompt tokens whose logprobs this step computes: those that follow the scored rows.
    scored_token_ids: Sequence[int] = ()
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work; `sequences` has those that run one token before longer chunks."""

    sequences: Sequence[ScheduledSequence] = field(default_factory=tuple)

    @property
    def inputs(self) -> list[SequenceInput]:
        """The model's part."""
        return [sequence.input for sequence in self.sequences]

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.input.token_ids) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step's results: tokens per sequence and, by index in the batch, what only some sequences have."""

    tokens: Sequence[Sequence[int]]  # empty where none is due, or where the sequence failed
    logprobs: Mapping[int, Sequence[PositionLogprobs]] = field(default_factory=dict)  # parallel to its tokens
    prompt_logprobs: Mapping[int, Sequence[PositionLogprobs]] = field(default_factory=dict)
    failures: Mapping[int, EngineError] = field(default_factory=dict)  # why a sequence ends; others continue
    late: Set[int] = frozenset()  # sequences whose constraint wasn't ready: their last token runs again


TicketT = TypeVar("TicketT")


class Runner(Protocol[TicketT]):
    """Runs batches on a device. The core's only way to the model; tests put a fake here.

    Steps run in the order in which they are submitted. One may be submitted before the last is collected, if
    it needs none of its tokens.
    """

    num_blocks: int  # KV-cache blocks
    window_blocks: Mapping[
        int, int
    ]  # by window, of layers that have blocks of their own; they free those behind
    block_size: int  # tokens in a block
    vocab_size: int  # logits per position
    # The most tokens that a step returns for a sequence, as far as its blocks reach. It has then written the
    # keys and values of all but the last, and left constraints and logits processors as they were.
    max_tokens_per_step: int
    num_state_slots: int  # for layers that carry a state, two for each running sequence; 0 = there are none

    def submit(self, batch: Batch) -> TicketT:
        """Start a step. Running part of a batch again after an error is safe.

        Raises DeviceLost if no later step can work.
        """
        ...

    def collect(self, ticket: TicketT) -> StepResult:
        """Wait for a step's results; once for each ticket. Raises like `submit`."""
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


class DeviceWatch(Protocol):
    """Of a device that can be lost between steps."""

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Call `on_lost`, from any thread, when the device is lost."""
        ...

    def check(self) -> None:
        """Raises DeviceLost if it is."""
        ...
