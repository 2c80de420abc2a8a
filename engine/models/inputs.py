"""A batch as tensors, for one step of the model. Knows nothing of the model or of sampling."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

import torch

from engine.core.batch import SequenceInput

_ALIGNMENT = 2  # int64 elements: a kernel is compiled once more for addresses that aren't multiples of 16


class BlockReader(Enum):
    """Which sequences attention reads by their block tables, with a kernel. They come first in a batch."""

    NONE = "none"
    DECODES = "decodes"  # those that run one token
    ALL = "all"


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """The position of one sequence of the step in the flat rows and in the KV cache."""

    first_row: int
    num_rows: int  # tokens that run now
    context: int  # positions 0 .. context - 1 are in the cache once this step's keys are written
    where: int | torch.Tensor  # the slot of position 0 if its blocks are adjacent, else its block table


@dataclass(frozen=True, slots=True)
class PagedSequences:
    """The step's first sequences, for a kernel that reads blocks in place; int64 on the model's device."""

    blocks: torch.Tensor  # the sequences' block tables end to end
    starts: torch.Tensor  # [S], where each one's block table begins
    contexts: torch.Tensor  # [S], positions to attend to, those of this step included
    first_rows: torch.Tensor  # [S + 1], the flat row of each one's first token, then the row after the last
    num_sequences: int  # S
    num_decodes: int  # the first of them run one token, and are rows 0, 1, …
    max_context: int


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's flat tokens, T of them, all sequences end to end, on the model's device."""

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    slots: torch.Tensor  # int64 [T]: block * block_size + offset, where the token's key and value go
    spans: tuple[SequenceSpan, ...]  # the sequences that aren't paged
    paged: PagedSequences | None
    # int64 [S + P], rows whose hidden states are needed: of sequences that sample, then of prompt tokens that
    # are scored. None = all T, in order.
    sampled_rows: torch.Tensor | None
    num_sampled: int  # S


@dataclass(frozen=True, slots=True)
class HostInputs:
    """A step's inputs in main memory: one tensor of all numbers, which one copy takes to the device."""

    numbers: torch.Tensor  # int64
    _sections: Sequence[slice]
    _spanned: tuple[tuple[SequenceInput, int], ...]  # sequences that aren't paged, with their first rows
    _num_decodes: int
    _max_context: int
    _selects_rows: bool
    _num_sampled: int

    def on(self, numbers: torch.Tensor, block_size: int) -> StepInputs:
        """The inputs as views of `numbers`, a copy of this object's on the model's device."""
        views = [numbers[section] for section in self._sections]
        token_ids, positions, slots, wanted, starts, contexts, first_rows, blocks = views
        paged = PagedSequences(
            blocks, starts, contexts, first_rows, len(starts), self._num_decodes, self._max_context
        )
        return StepInputs(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            spans=tuple(_span(s, first_row, block_size, numbers.device) for s, first_row in self._spanned),
            paged=paged if len(starts) else None,
            sampled_rows=wanted if self._selects_rows else None,
            num_sampled=self._num_sampled,
        )


def build_inputs(
    batch: Sequence[SequenceInput],
    block_size: int,
    device: torch.device,
    *,
    reader: BlockReader = BlockReader.NONE,
) -> StepInputs:
    """Flatten a batch. Sequences, and the rows of each, keep their order."""
    inputs = flatten(batch, block_size, reader)
    return inputs.on(inputs.numbers.to(device), block_size)


def flatten(
    batch: Sequence[SequenceInput], block_size: int, reader: BlockReader, *, pad_to: int = 0
) -> HostInputs:
    """`pad_to`, for a batch of paged decodes: fill it up to so many rows, which read and store nothing."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    first_rows = [0]
    sampled_rows: list[int] = []
    scored_rows: list[int] = []
    for sequence in batch:
        first_row = len(token_ids)
        stop = sequence.start + len(sequence.token_ids)
        token_ids.extend(sequence.token_ids)
        positions.extend(range(sequence.start, stop))
        slots.extend(_slots(sequence.block_ids, sequence.start, stop, block_size))
        first_rows.append(len(token_ids))
        if sequence.samples:
            sampled_rows.append(len(token_ids) - 1)
        if sequence.num_scored:
            first_scored = first_row + sequence.scored_from
            scored_rows.extend(range(first_scored, first_scored + sequence.num_scored))
    num_decodes = _count_decodes(batch)
    num_paged = {BlockReader.NONE: 0, BlockReader.DECODES: num_decodes}.get(reader, len(batch))
    paged = batch[:num_paged]
    starts, contexts, blocks = _block_tables(paged)
    max_context = max(contexts, default=0)
    selects_rows = len(sampled_rows) < len(token_ids) or bool(scored_rows)
    num_padding = max(0, pad_to - len(token_ids))
    if num_padding:
        for column, filling in ((token_ids, 0), (positions, 0), (slots, -1), (starts, 0), (contexts, 0)):
            column.extend([filling] * num_padding)
        first_rows.extend(range(first_rows[-1] + 1, first_rows[-1] + 1 + num_padding))
    wanted_rows = sampled_rows + scored_rows if selects_rows else []
    spanned = zip(batch[num_paged:], first_rows[num_paged:], strict=False)
    numbers, sections = _end_to_end(
        token_ids, positions, slots, wanted_rows, starts, contexts, first_rows, blocks
    )
    return HostInputs(
        numbers=numbers,
        _sections=sections,
        _spanned=tuple(spanned),
        _num_decodes=num_decodes + num_padding,
        _max_context=max_context,
        _selects_rows=selects_rows,
        _num_sampled=len(sampled_rows),
    )


def _count_decodes(sequences: Sequence[SequenceInput]) -> int:
    """How many sequences in front run one token; a prompt's last token may come later."""
    return sum(1 for _ in takewhile(lambda sequence: len(sequence.token_ids) == 1, sequences))


def _block_tables(sequences: Sequence[SequenceInput]) -> tuple[list[int], list[int], list[int]]:
    """Where each table starts, each sequence's context, and the tables end to end."""
    starts: list[int] = []
    contexts: list[int] = []
    blocks: list[int] = []
    for sequence in sequences:
        starts.append(len(blocks))
        contexts.append(sequence.start + len(sequence.token_ids))
        blocks.extend(sequence.block_ids)
    return starts, contexts, blocks


def _end_to_end(*columns: list[int]) -> tuple[torch.Tensor, list[slice]]:
    """The columns in one tensor, each at an aligned place, and those places."""
    flat: list[int] = []
    sections = []
    for column in columns:
        sections.append(slice(len(flat), len(flat) + len(column)))
        flat += column
        if num_unused := len(flat) % _ALIGNMENT:
            flat += [0] * (_ALIGNMENT - num_unused)
    return torch.frombuffer(array("q", flat), dtype=torch.int64), sections


def _slots(block_ids: Sequence[int], start: int, stop: int, block_size: int) -> list[int]:
    """The slots of positions `start` .. `stop` - 1."""
    return [block_ids[p // block_size] * block_size + p % block_size for p in range(start, stop)]


def _span(sequence: SequenceInput, first_row: int, block_size: int, device: torch.device) -> SequenceSpan:
    num_rows = len(sequence.token_ids)
    context = sequence.start + num_rows
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
