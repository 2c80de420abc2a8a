"""A batch as tensors, for one step of the model. Knows nothing of the model or of sampling."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any, Protocol

import torch

from engine.core.batch import SequenceInput

_ALIGNMENT = 2  # int64 elements: a kernel is compiled once more for addresses that aren't multiples of 16


class Plans(Protocol):
    """The part of an attention backend that reads a step's inputs."""

    def plan(self, inputs: StepInputs, window: int | None) -> Any:
        """See engine.models.attention.backend.AttentionBackend."""
        ...


@dataclass(frozen=True, slots=True)
class FlatArrays:
    """A step's T tokens of S sequences, all end to end; int64, aligned views of one tensor."""

    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slots: torch.Tensor  # [T]: block * block_size + offset, where the token's key and value go
    sampled_rows: torch.Tensor  # [N + P], empty if all rows are needed; see StepInputs
    starts: torch.Tensor  # [S], where each sequence's block table begins in `blocks`
    contexts: torch.Tensor  # [S], positions to attend to, those of this step included
    first_rows: torch.Tensor  # [S + 1], the row of each sequence's first token, then the row after the last
    blocks: torch.Tensor  # the sequences' block tables end to end
    state_slots: torch.Tensor | None = None  # [2 * S] those read, then those written, if there are any


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's flat tokens on the model's device; the arrays are those of FlatArrays."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    # Rows whose hidden states are needed: of N sequences that sample, then of P prompt tokens that are
    # scored. None = all T, in order.
    sampled_rows: torch.Tensor | None
    starts: torch.Tensor
    contexts: torch.Tensor
    first_rows: torch.Tensor
    blocks: torch.Tensor
    num_sampled: int  # N
    num_sequences: int  # S
    num_decodes: int  # the first of them run one token, and are rows 0, 1, …
    max_context: int
    host: FlatArrays  # the same numbers in main memory
    windows: tuple[StepInputs, ...] = ()  # with the block tables and slots of each group with a window
    state_slots: torch.Tensor | None = None
    _plans: dict[tuple[Plans, int | None], Any] = field(default_factory=dict, init=False, compare=False)

    def plan(self, backend: Plans, window: int | None) -> Any:
        """What a backend made of this step, for layers with that window."""
        key = (backend, window)
        if key not in self._plans:
            self._plans[key] = backend.plan(self, window)
        return self._plans[key]


@dataclass(frozen=True, slots=True)
class HostInputs:
    """A step's inputs in main memory: one tensor of all numbers, which one copy takes to the device."""

    numbers: torch.Tensor  # int64
    _sections: Sequence[slice]
    _num_decodes: int
    _max_context: int
    _selects_rows: bool
    _num_sampled: int
    _windows: Sequence[Sequence[slice]] = ()  # the sections of each group with a window

    def on(self, numbers: torch.Tensor) -> StepInputs:
        """The inputs as views of `numbers`, a copy of this object's on the model's device."""
        windows = tuple(self._inputs(numbers, sections) for sections in self._windows)
        return self._inputs(numbers, self._sections, windows)

    def _inputs(
        self, numbers: torch.Tensor, sections: Sequence[slice], windows: tuple[StepInputs, ...] = ()
    ) -> StepInputs:
        arrays = FlatArrays(*[numbers[section] for section in sections])
        on_host = numbers is self.numbers  # as on a CPU
        host = arrays if on_host else FlatArrays(*[self.numbers[section] for section in sections])
        return StepInputs(
            token_ids=arrays.token_ids,
            positions=arrays.positions,
            slots=arrays.slots,
            sampled_rows=arrays.sampled_rows if self._selects_rows else None,
            starts=arrays.starts,
            contexts=arrays.contexts,
            first_rows=arrays.first_rows,
            blocks=arrays.blocks,
            num_sampled=self._num_sampled,
            num_sequences=len(arrays.starts),
            num_decodes=self._num_decodes,
            max_context=self._max_context,
            host=host,
            windows=windows,
            state_slots=arrays.state_slots,
        )


def build_inputs(batch: Sequence[SequenceInput], block_size: int, device: torch.device) -> StepInputs:
    """Flatten a batch. Sequences, and the rows of each, keep their order."""
    inputs = flatten(batch, block_size)
    return inputs.on(inputs.numbers.to(device))


def flatten(batch: Sequence[SequenceInput], block_size: int, *, pad_to: int = 0) -> HostInputs:
    """`pad_to`, for a batch of decodes: fill it up to so many rows, which read and store nothing."""
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
    starts, contexts, blocks = _block_tables(batch, [sequence.block_ids for sequence in batch])
    max_context = max(contexts, default=0)
    selects_rows = len(sampled_rows) < len(token_ids) or bool(scored_rows)
    num_padding = max(0, pad_to - len(token_ids))
    if num_padding:
        for column, filling in ((token_ids, 0), (positions, 0), (slots, -1), (starts, 0), (contexts, 0)):
            column.extend([filling] * num_padding)
        first_rows.extend(range(first_rows[-1] + 1, first_rows[-1] + 1 + num_padding))
    wanted_rows = sampled_rows + scored_rows if selects_rows else []
    windows = [_window_columns(batch, group, block_size) for group in range(_num_windows(batch))]
    columns = [token_ids, positions, slots, wanted_rows, starts, contexts, first_rows, blocks]
    if batch and batch[0].state_slots is not None:
        columns.append([pair[part] for part in (0, 1) for s in batch if (pair := s.state_slots) is not None])
    numbers, sections = _end_to_end(*columns, *chain.from_iterable(windows))
    return HostInputs(
        numbers=numbers,
        _sections=sections[: len(columns)],
        _num_decodes=_count_decodes(batch) + num_padding,
        _max_context=max_context,
        _selects_rows=selects_rows,
        _num_sampled=len(sampled_rows),
        _windows=[
            _with_window(sections, len(columns) + group * _WINDOW_COLUMNS) for group in range(len(windows))
        ],
    )


_WINDOW_COLUMNS = 3


def _num_windows(batch: Sequence[SequenceInput]) -> int:
    return len(batch[0].window_block_ids) if batch else 0


def _window_columns(batch: Sequence[SequenceInput], group: int, block_size: int) -> list[list[int]]:
    """Of a group with a window: slots, and where each table starts, and the tables end to end."""
    tables = [sequence.window_block_ids[group] for sequence in batch]
    slots: list[int] = []
    for sequence, table in zip(batch, tables, strict=True):
        slots += _slots(table, sequence.start, sequence.start + len(sequence.token_ids), block_size)
    starts, _, blocks = _block_tables(batch, tables)
    return [slots, starts, blocks]


def _with_window(sections: Sequence[slice], first: int) -> list[slice]:
    """The sections of FlatArrays, with a group's columns in place of those of the layers that keep all."""
    token_ids, positions, _, sampled_rows, _, contexts, first_rows, *_ = sections
    slots, starts, blocks = sections[first : first + _WINDOW_COLUMNS]
    return [token_ids, positions, slots, sampled_rows, starts, contexts, first_rows, blocks]


def _count_decodes(sequences: Sequence[SequenceInput]) -> int:
    """How many sequences in front run one token; a prompt's last token may come later."""
    return sum(1 for _ in takewhile(lambda sequence: len(sequence.token_ids) == 1, sequences))


def _block_tables(
    sequences: Sequence[SequenceInput], tables: Sequence[Sequence[int]]
) -> tuple[list[int], list[int], list[int]]:
    """Where each sequence's table starts, its context, and the tables end to end."""
    starts: list[int] = []
    contexts: list[int] = []
    blocks: list[int] = []
    for sequence, table in zip(sequences, tables, strict=True):
        starts.append(len(blocks))
        contexts.append(sequence.start + len(sequence.token_ids))
        blocks.extend(table)
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
