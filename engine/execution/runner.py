"""Runs batches: tensors, model, logits, tokens. The engine's only access to the device.

Knows nothing of scheduling, text or HTTP; called from one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from engine.core.adapter import Adapter
from engine.core.batch import Batch, ScheduledSequence, SequenceInput, StepResult
from engine.core.sleep import MemoryUsage, Part
from engine.core.state_slots import SlotPair
from engine.core.types import PositionLogprobs, SamplingParams
from engine.errors import ConfigError, DeviceLost
from engine.execution.graphs import GraphHolder, Record
from engine.execution.residency import ModelResidency
from engine.execution.sampling.logprobs import position_logprobs, raw_logprobs, with_named
from engine.execution.sampling.masks import BitmaskFiller, Masks
from engine.execution.sampling.sampler import SampledRow, Sampler
from engine.models.attention.paged import PagedKVCache
from engine.models.decoder import CausalLM
from engine.models.inputs import build_inputs
from engine.models.lora.adapters import Adapters

# Logits of a prompt's tokens in memory at a time: 64 MiB in float32, and as much again of logprobs.
_SCORED_LOGITS = 1 << 24
_SCORED_ROWS = 512  # more at a time need more memory, but no less time


@dataclass(slots=True, eq=False)
class SubmittedStep:
    """A step whose model runs, or has run; its tokens are sampled when it is collected."""

    batch: Batch
    logits: torch.Tensor | None = None  # of the sequences that sample [S, vocab_size]; None if S is 0
    scored: torch.Tensor | None = None  # hidden states of the scored rows [P, …]
    masks: Callable[[], Masks] | None = None  # None if no sequence has a constraint
    runs: bool = True  # False if all constraints are late
    number: int = 0  # where several ranks run it


class ModelRunner:
    """Implements engine.core.batch.Runner with PyTorch."""

    max_tokens_per_step = 1

    def __init__(
        self,
        model: CausalLM,
        cache: PagedKVCache,
        *,
        eos_token_ids: Sequence[int],
        load: Callable[[], CausalLM] | None = None,
        record: Callable[[], Record] | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """`load` recreates the model after a sleep at level 2. The runner must have the only references.

        `record` makes what records decode steps as graphs; None: they aren't. `adapters` are attached to
        the model.
        """
        self._graphs = GraphHolder(record)
        self._adapters = adapters
        self._replayed: SubmittedStep | None = None  # not collected yet; its logits are a graph's
        self._residency = ModelResidency(
            model,
            cache,
            device=model.device,
            load=load,
            on_move=self._graphs.drop,
            make_cache=partial(
                PagedKVCache,
                model.attention_specs,
                num_blocks=cache.num_blocks,
                window_blocks=cache.window_blocks,
                block_size=cache.block_size,
                dtype=model.dtype,
                device=model.device,
                state_specs=model.state_specs,
                num_state_slots=cache.num_state_slots,
            ),
        )
        self._sampler = Sampler(eos_token_ids)
        self._bitmask_filler = BitmaskFiller(
            model.config.vocab_size,
            beside_model=model.device.type != "cpu",
        )
        self.num_blocks = cache.num_blocks
        self.window_blocks: Mapping[int, int] = cache.window_blocks
        self.num_state_slots = cache.num_state_slots
        self.block_size = cache.block_size
        self.vocab_size = model.config.vocab_size

    @torch.inference_mode()
    def submit(self, batch: Batch) -> SubmittedStep:
        """Start a step. Raises DeviceLost if no later step can work."""
        constraints = {
            row: sequence.constraint
            for row, sequence in enumerate(s for s in batch.sequences if s.input.samples)
            if sequence.constraint is not None
        }
        if len(constraints) == batch.num_tokens and not self._bitmask_filler.wait_for_any(
            constraints.values()
        ):
            return SubmittedStep(batch, runs=False)
        step = SubmittedStep(batch)
        with _translated_loss():
            step.masks = self._bitmask_filler.start(constraints)
            self.run_model(step)
        return step

    @torch.inference_mode()
    def collect(self, ticket: SubmittedStep) -> StepResult:
        """The step's tokens. Raises DeviceLost if no later step can work."""
        if ticket is self._replayed:
            self._replayed = None
        sampled = [index for index, sequence in enumerate(ticket.batch.sequences) if sequence.input.samples]
        if not ticket.runs:
            return StepResult([()] * len(sampled), late=set(sampled))
        with _translated_loss():
            masks = None if ticket.masks is None else ticket.masks()
            prompt_logprobs = self._score(ticket)
            return self._choose(ticket, sampled, masks, prompt_logprobs)

    def execute(self, batch: Batch) -> StepResult:
        """Run one step by itself."""
        return self.collect(self.submit(batch))

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor | None:
        """Run the model. Returns the logits of sequences that sample [S, vocab_size], None if none does."""
        step = SubmittedStep(batch)
        self.run_model(step)
        return step.logits

    def sleep(self, level: int) -> None:
        """See Sleeps in engine/core/sleep_controller.py."""
        self._residency.sleep(level)

    def wake_up(self, parts: Set[Part]) -> None:
        """See Sleeps in engine/core/sleep_controller.py."""
        self._residency.wake_up(parts)

    @property
    def memory(self) -> MemoryUsage:
        return self._residency.memory

    def read_adapter(self, name: str, directory: Path) -> Adapter:
        """See Runner in engine/core/batch.py."""
        if self._adapters is None:
            raise ConfigError("LoRA adapters need --enable-lora.")
        return self._adapters.read(name, directory)

    def warm_up(self, num_tokens: int) -> None:
        """Run a prefill of `num_tokens` and one decode, so that the first request doesn't pay for set-up.

        Writes to empty blocks; call it before the first `execute`.
        """
        params = SamplingParams(max_tokens=1, temperature=0.0)
        slots = SlotPair(0, 1) if self.num_state_slots else None
        for token_ids, start in (([0] * num_tokens, 0), ([0], num_tokens - 1)):
            blocks = range(-(-num_tokens // self.block_size))
            windows = (blocks,) * len(self.window_blocks)
            sequence = SequenceInput(
                token_ids, start, blocks, samples=True, window_block_ids=windows, state_slots=slots
            )
            self.execute(Batch((ScheduledSequence(sequence, "warm-up", params),)))

    @torch.inference_mode()
    def record_graphs(self, max_rows: int) -> None:
        """Record decode steps of up to so many sequences now, where that is done at all."""
        graphs = self._graphs.find(self._residency.model, self._residency.cache)
        if graphs is not None:
            graphs.record_all(max_rows)

    def run_model(self, step: SubmittedStep) -> None:
        """Fill in the sampled rows' logits, and the scored rows' hidden states."""
        model, cache, inputs = self._residency.model, self._residency.cache, step.batch.inputs
        is_adapted = self._adapters is not None and self._adapters.begin(step.batch)
        if not is_adapted and (graphs := self._graphs.find(model, cache)) is not None:
            if self._replayed is not None and self._replayed.logits is not None:
                self._replayed.logits = self._replayed.logits.clone()  # the next replay overwrites them
            self._replayed = None
            if (logits := graphs.logits(inputs)) is not None:
                step.logits, self._replayed = logits, step
                return
        tensors = build_inputs(inputs, self.block_size, model.device)
        try:
            hidden = model(tensors, cache)
        finally:
            if self._adapters is not None:
                self._adapters.end()
        sampled, step.scored = hidden[: tensors.num_sampled], hidden[tensors.num_sampled :]
        step.logits = model.logits(sampled) if len(sampled) else None

    def scored_logits(self, step: SubmittedStep, start: int, stop: int) -> torch.Tensor:
        """Of scored rows `start` … `stop` - 1: [rows, vocab_size]."""
        if step.scored is None:
            raise ValueError("The step has no scored rows.")
        return self._residency.model.logits(step.scored[start:stop])

    def _choose(
        self,
        step: SubmittedStep,
        sampled: Sequence[int],
        masks: Masks | None,
        prompt_logprobs: Mapping[int, Sequence[PositionLogprobs]],
    ) -> StepResult:
        """From logits to the step's result; `sampled` are the sequences' indices in the batch."""
        tokens: list[tuple[int, ...]] = [()] * len(step.batch.sequences)
        if (logits := step.logits) is None:
            return StepResult(tokens, prompt_logprobs=prompt_logprobs)
        sequences = [step.batch.sequences[index] for index in sampled]
        asking = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        logprobs = raw_logprobs(logits[asking]) if asking else None  # before the sampler edits the logits
        rows = [SampledRow(s.params, s.output_position, s.logits_processors) for s in sequences]
        result = self._sampler.sample(logits, rows, masks)
        failures = {**result.failures, **(masks.failures if masks else {})}
        late = masks.late if masks else frozenset()
        for row, token in enumerate(result.tokens):
            if token is not None and row not in failures and row not in late:
                tokens[sampled[row]] = (token,)
        return StepResult(
            tokens,
            logprobs={}
            if logprobs is None
            else _sampled_logprobs(logprobs, asking, sampled, sequences, tokens),
            prompt_logprobs=prompt_logprobs,
            failures={sampled[row]: message for row, message in failures.items()},
            late={sampled[row] for row in late},
        )

    def _score(self, step: SubmittedStep) -> dict[int, list[PositionLogprobs]]:
        """Logprobs of the prompt tokens that follow the scored rows, by sequence.

        In slices: for all rows of a step, the logits of a large vocabulary would take gigabytes.
        """
        scored: dict[int, list[PositionLogprobs]] = {}
        if step.scored is None:
            return scored
        size = max(1, min(_SCORED_ROWS, _SCORED_LOGITS // self.vocab_size))
        first = 0
        for index, sequence in enumerate(step.batch.sequences):
            token_ids, num_top = sequence.scored_token_ids, sequence.params.prompt_logprobs
            if not token_ids or num_top is None:
                continue
            scored[index] = []
            for start in range(0, len(token_ids), size):
                part = token_ids[start : start + size]
                logits = self.scored_logits(step, first + start, first + start + len(part))
                logprobs = raw_logprobs(logits)
                scored[index] += position_logprobs(logprobs, part, [num_top] * len(part))
            first += len(token_ids)
        return scored


def _sampled_logprobs(
    logprobs: torch.Tensor,
    asking: Sequence[int],
    sampled: Sequence[int],
    sequences: Sequence[ScheduledSequence],
    tokens: Sequence[Sequence[int]],
) -> Mapping[int, Sequence[PositionLogprobs]]:
    """The logprobs of the sampled tokens, by index in the batch.

    `logprobs` [R, vocab_size] are of the rows `asking`, which are indices into `sampled` and `sequences`.
    """
    chosen = [tokens[sampled[row]] for row in asking]
    kept = [index for index, own in enumerate(chosen) if own]
    if not kept:
        return {}
    if len(kept) < len(asking):
        logprobs = logprobs[kept]
    params = [sequences[asking[index]].params for index in kept]
    positions = position_logprobs(
        logprobs,
        [token for own in chosen for token in own],
        [0 if p.logprob_token_ids else p.logprobs or 0 for p in params],
    )
    positions = with_named(positions, logprobs, [p.logprob_token_ids for p in params])
    return {sampled[asking[index]]: (position,) for index, position in zip(kept, positions, strict=True)}


@contextmanager
def _translated_loss() -> Iterator[None]:
    """A device error, unlike a lack of memory, leaves the device unusable for this process."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(f"The device reports: {error}") from error
