"""A batch as tensors, for one step of the model. Knows nothing of the model or of sampling."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.core.batch import Batch, ScheduledSequence


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """The position of one sequence of the step in the flat rows and in the KV cache."""

    first_row: int
    num_rows: int  # tokens that run now
    context: int  # positions 0 .. context - 1 are in the cache once this step's keys are written
    where: int | torch.Tensor  # the slot of position 0 if its blocks are adjacent, else its block table


@dataclass(frozen=True, slots=True)
class PagedDecodes:
    """The sequences that run one token, rows 0 … R - 1, for a kernel that reads blocks in place."""

    blocks: torch.Tensor  # int64, the rows' block tables end to end
    starts: torch.Tensor  # int64 [R], where each row's block table begins
    contexts: torch.Tensor  # int64 [R], positions to attend to, the row's own included
    num_rows: int  # R


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's flat tokens, T of them, all sequences end to end, on the model's device."""

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    slots: torch.Tensor  # int64 [T]: block * block_size + offset, where the token's key and value go
    spans: tuple[SequenceSpan, ...]
    decodes: PagedDecodes | None  # if a kernel runs them; then they aren't among the spans
    # int64 [S + P], rows whose hidden states are needed: of sequences that sample, then of prompt tokens that
    # are scored. None = all T, in order.
    sampled_rows: torch.Tensor | None
    num_sampled: int  # S


def build_inputs(
    batch: Batch, block_size: int, device: torch.device, *, paged_decodes: bool = False
) -> StepInputs:
    """Flatten a batch. Sequences, and the rows of each, keep their order."""
    decodes = _paged_decodes(batch) if paged_decodes else None
    num_decodes = decodes.num_rows if decodes else 0
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sampled_rows: list[int] = []
    scored_rows: list[int] = []
    spans: list[SequenceSpan] = []
    for sequence in batch.sequences:
        first_row = len(token_ids)
        stop = sequence.start + len(sequence.token_ids)
        token_ids.extend(sequence.token_ids)
        positions.extend(range(sequence.start, stop))
        slots.extend(_slots(sequence.block_ids, sequence.start, stop, block_size))
        if sequence.samples:
            sampled_rows.append(len(token_ids) - 1)
        if sequence.scored_token_ids:
            first_scored = first_row + sequence.scored_from
            scored_rows.extend(range(first_scored, first_scored + len(sequence.scored_token_ids)))
        if first_row >= num_decodes:
            spans.append(_span(sequence, first_row, stop, block_size, device))
    flat = torch.tensor([token_ids, positions, slots], dtype=torch.int64).to(device)  # one copy to the device
    every_row = len(sampled_rows) == len(token_ids) and not scored_rows
    wanted_rows = sampled_rows + scored_rows
    return StepInputs(
        token_ids=flat[0],
        positions=flat[1],
        slots=flat[2],
        spans=tuple(spans),
        decodes=decodes,
        sampled_rows=None if every_row else torch.tensor(wanted_rows, dtype=torch.int64, device=device),
        num_sampled=len(sampled_rows),
    )


def _paged_decodes(batch: Batch) -> PagedDecodes | None:
    """Sequences that run one token come first in a batch."""
    blocks, starts, contexts = array("q"), array("q"), array("q")
    for sequence in batch.sequences:
        if len(sequence.token_ids) > 1:
            break
        starts.append(len(blocks))
        contexts.append(sequence.start + 1)
        blocks.extend(sequence.block_ids)
    if not starts:
        return None
    flat, begins, lengths = (torch.frombuffer(a, dtype=torch.int64) for a in (blocks, starts, contexts))
    return PagedDecodes(flat, begins, lengths, len(starts))


def _slots(block_ids: Sequence[int], start: int, stop: int, block_size: int) -> list[int]:
    """The slots of positions `start` .. `stop` - 1."""
    return [block_ids[p // block_size] * block_size + p % block_size for p in range(start, stop)]


def _span(
    sequence: ScheduledSequence, first_row: int, context: int, block_size: int, device: torch.device
) -> SequenceSpan:
    num_rows = len(sequence.token_ids)
    blocks = sequence.block_ids[: -(-context // block_size)]
    if are_consecutive(blocks):
        return SequenceSpan(first_row, num_rows, context, blocks[0] * block_size)
    block_table = torch.tensor(blocks, dtype=torch.int64, device=device)
    return SequenceSpan(first_row, num_rows, context, block_table)


def are_consecutive(blocks: Sequence[int]) -> bool:
    """Whether the blocks are adjacent in the cache, in order: then attention needs no gathering."""
    first = blocks[0]
    return blocks[-1] - first == len(blocks) - 1 and all(
        block == first + index for index, block in enumerate(blocks)
    )
