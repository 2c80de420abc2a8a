"""A runner without a model, for the tests of everything above it.

It has a paged cache of its own: tokens are written to the slots that the block table names, and the next
token is a function of all tokens read back from there. So a wrong table, a block shared too early or reused
too soon gives wrong output, as it would with real keys and values.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from zlib import crc32

from engine.core.adapter import Adapter
from engine.core.batch import Batch, ScheduledSequence, StepResult
from engine.core.sleep import MemoryUsage, Part
from engine.core.types import EngineRequest, PositionLogprobs, SamplingParams, TokenConstraint, TokenLogprob

VOCABULARY = 40
_MASK_WORDS = 9  # for the 259 tokens of the tests' tokenizer


def next_token(token_ids: Sequence[int], seed: int, output_position: int) -> int:
    return crc32(array("q", [seed, output_position, *token_ids]).tobytes()) % VOCABULARY


def reference_output(
    request: EngineRequest, *, eos_token_ids: Sequence[int] = (), max_model_len: int = 10**9
) -> list[int]:
    """The expected output, token by token, whatever runs beside the request."""
    prompt, params = list(request.prompt_token_ids), request.params
    stops = params.stop_token_ids | (frozenset() if params.ignore_eos else frozenset(eos_token_ids))
    output: list[int] = []
    while len(output) < min(params.max_tokens, max_model_len - len(prompt)):
        output.append(next_token(prompt + output, params.seed, len(output)))
        if output[-1] in stops and len(output) > params.min_tokens:
            break
    return output


def logprobs_of(token: int) -> PositionLogprobs:
    return PositionLogprobs(TokenLogprob(token, -float(token), 1))


def make_request(
    request_id: str,
    prompt: Sequence[int],
    *,
    max_tokens: int = 4,
    priority: int = 0,
    arrival_time: float = 0.0,
    params: SamplingParams | None = None,
    group: str = "",
) -> EngineRequest:
    return EngineRequest(
        request_id=request_id,
        group=group,
        prompt_token_ids=prompt,
        params=params or SamplingParams(max_tokens=max_tokens),
        arrival_time=arrival_time,
        priority=priority,
    )


class FakeRunner:
    """`before` is called first in every step: it may block, be slow or raise.

    With `max_tokens_per_step` it guesses as many tokens as there is space for, like a perfect speculation.
    """

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        before: Callable[[Batch], None] | None = None,
        max_tokens_per_step: int = 1,
        window_blocks: Mapping[int, int] | None = None,
        num_state_slots: int = 0,
    ) -> None:
        self.window_blocks = window_blocks or {}
        self.num_state_slots = num_state_slots
        self.max_tokens_per_step = max_tokens_per_step
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.vocab_size = 1 << 17
        self.sleeps: list[int] = []
        self.wakings: list[frozenset[Part]] = []
        self.before = before
        self.num_steps = 0
        self.last_batch = Batch()
        self._allocate()

    def _allocate(self) -> None:
        """Slots of the whole cache, and of each group of layers with a window."""
        self._slots: list[int | None] = [None] * (self.num_blocks * self.block_size)
        self._windows: list[tuple[int, list[int | None]]] = [
            (window, [None] * (num_blocks * self.block_size))
            for window, num_blocks in self.window_blocks.items()
        ]

    def read_adapter(self, name: str, directory: Path) -> Adapter:
        return Adapter(name, None)

    def submit(self, batch: Batch) -> StepResult:
        return self.execute(batch)

    def collect(self, ticket: StepResult) -> StepResult:
        return ticket

    def execute(self, batch: Batch) -> StepResult:
        self.num_steps += 1
        self.last_batch = batch
        if self.before is not None:
            self.before(batch)
        # Earlier steps must have written whatever a step reads beyond its own tokens.
        tokens = [self._run(sequence) for sequence in batch.sequences]
        self._write(self._slots, [one.block_ids for one in batch.inputs], batch, tokens)
        for group, (_, slots) in enumerate(self._windows):
            self._write(slots, [one.window_block_ids[group] for one in batch.inputs], batch, tokens)
        return StepResult(
            tokens,
            logprobs={
                index: [logprobs_of(token) for token in own]
                for index, own in enumerate(tokens)
                if own and batch.sequences[index].params.logprobs is not None
            },
            prompt_logprobs={
                index: [logprobs_of(token) for token in self._scored(sequence)]
                for index, sequence in enumerate(batch.sequences)
                if sequence.scored_token_ids
            },
        )

    def sleep(self, level: int) -> None:
        self.sleeps.append(level)
        self._slots = []

    def wake_up(self, parts: Set[Part]) -> None:
        self.wakings.append(frozenset(parts))
        if Part.KV_CACHE in parts:
            self._allocate()

    @property
    def memory(self) -> MemoryUsage:
        return MemoryUsage(device="cpu", weights=0, kv_cache=len(self._slots))

    def _scored(self, sequence: ScheduledSequence) -> Sequence[int]:
        """The tokens after the scored rows, which must equal the tokens that run."""
        scored, first, token_ids = (
            sequence.scored_token_ids,
            sequence.input.scored_from,
            sequence.input.token_ids,
        )
        if (
            not 0 <= first <= first + len(scored) <= len(token_ids)
            or len(scored) != sequence.input.num_scored
        ):
            raise AssertionError(f"{sequence.request_id}: {len(scored)} scored from row {first} don't run.")
        if list(token_ids[first + 1 : first + len(scored) + 1]) != list(scored)[: len(token_ids) - first - 1]:
            raise AssertionError(f"{sequence.request_id}: {scored} don't follow row {first}.")
        return scored

    def _write(
        self,
        slots: list[int | None],
        tables: Sequence[Sequence[int]],
        batch: Batch,
        sampled: Sequence[Sequence[int]],
    ) -> None:
        """The tokens that run, and all but the last of those returned."""
        written: set[int] = set()
        for sequence, table, guessed in zip(batch.inputs, tables, sampled, strict=True):
            for offset, token in enumerate((*sequence.token_ids, *guessed[:-1])):
                slot = self._slot(table, sequence.start + offset)
                if slot in written:
                    raise AssertionError(f"Slot {slot} is written twice in one step.")
                written.add(slot)
                slots[slot] = token

    def _slot(self, table: Sequence[int], position: int) -> int:
        return table[position // self.block_size] * self.block_size + position % self.block_size

    def _check_windows(self, sequence: ScheduledSequence, known: Sequence[int]) -> None:
        """The layers with a window must find in their own blocks what lies in it."""
        for (window, slots), table in zip(self._windows, sequence.input.window_block_ids, strict=True):
            first = max(0, len(known) - window + 1)
            seen = [slots[self._slot(table, position)] for position in range(first, len(known))]
            if seen != list(known[first:]):
                raise AssertionError(f"{sequence.request_id} reads {seen} in its window of {window}.")

    def _run(self, sequence: ScheduledSequence) -> list[int]:
        start, token_ids = sequence.input.start, sequence.input.token_ids
        context = [self._slots[self._slot(sequence.input.block_ids, position)] for position in range(start)]
        known = [token for token in context if token is not None]
        if len(known) != len(context):
            raise AssertionError(f"{sequence.request_id} reads slots that were never written.")
        self._check_windows(sequence, known)
        if not sequence.input.samples:
            return []
        most = len(sequence.input.block_ids) * self.block_size - start - len(token_ids) + 1
        sampled: list[int] = []
        for position in range(sequence.output_position, sequence.output_position + self.max_tokens_per_step):
            if len(sampled) == most:
                break
            if sequence.constraint is not None and sampled:
                sequence.constraint.accept(sampled[-1])
            token = next_token([*known, *token_ids, *sampled], sequence.params.seed, position)
            sampled.append(token if sequence.constraint is None else _allowed(sequence.constraint, token))
        if sequence.constraint is not None and len(sampled) > 1:
            sequence.constraint.rollback(len(sampled) - 1)
        return sampled


def _allowed(constraint: TokenConstraint, token: int) -> int:
    """`token`, or the next that the constraint allows."""
    import torch  # only if needed

    mask = torch.full((1, _MASK_WORDS), -1, dtype=torch.int32)
    if not constraint.fill_mask(mask, 0):
        return token
    bits = [int(word) >> bit & 1 for word in mask[0].tolist() for bit in range(32)]
    return next(t % len(bits) for t in range(token, token + len(bits)) if bits[t % len(bits)])
