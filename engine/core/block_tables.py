"""Gives sequences their blocks in all cache groups, and state slots, and takes them back.

The first group has the layers that see all positions; a sequence keeps its blocks there. Further groups are
those of layers with a window, which most models don't have.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from typing import NamedTuple

from engine.core.block_manager import BlockManager
from engine.core.sequence import NO_BLOCKS, SequenceState
from engine.core.state_slots import StateSlots
from engine.core.window_groups import WindowGroup


class PrefixMatch(NamedTuple):
    """The cached blocks that match the beginning of a sequence."""

    blocks: Sequence[int] = ()
    tails: Sequence[Sequence[int]] = ()  # in each group with a window, the last of them


class BlockTables:
    """Acts on the blocks of sequences; who gets some, and who loses them, the scheduler decides."""

    def __init__(
        self,
        block_manager: BlockManager,
        windows: Sequence[WindowGroup] = (),
        *,
        max_tokens_per_step: int = 1,
        state_slots: StateSlots | None = None,
    ) -> None:
        """`state_slots`: of a model that carries a state; its blocks are not shared."""
        self.block_manager = block_manager
        self.windows = tuple(windows)
        self._max_tokens_per_step = max_tokens_per_step
        self._state_slots = state_slots

    @property
    def usage(self) -> float:
        """The fraction of blocks that are allocated, 0 … 1, where it is highest."""
        return max(self.block_manager.usage, *(group.block_manager.usage for group in self.windows), 0.0)

    def can_start(self, sequence: SequenceState, match: PrefixMatch, num_running: int) -> bool:
        """Whether it gets all blocks of its tokens, and one is left for each running sequence."""
        if self._state_slots is not None and not self._state_slots.num_free:
            return False
        num_tokens = len(sequence.token_ids)
        num_new = self.block_manager.num_blocks_for(num_tokens) - len(match.blocks)
        return self.block_manager.can_allocate(num_new + num_running, shared=match.blocks) and all(
            group.can_start(num_tokens) for group in self.windows
        )

    def start(self, sequence: SequenceState, match: PrefixMatch, *, longest: int, most_reserved: int) -> None:
        """Allocate those blocks, if possible where those for `longest` tokens, or so many, can follow."""
        num_tokens, num_cached = len(sequence.token_ids), len(match.blocks)
        present = self.block_manager.num_blocks_for(num_tokens)
        reserved = min(self.block_manager.num_blocks_for(longest), present + most_reserved) - num_cached
        blocks = self.block_manager.allocate(present - num_cached, shared=match.blocks, reserved=reserved)
        sequence.block_ids = array("q", blocks)
        if self._state_slots is not None:
            sequence.state_slots = self._state_slots.take()
        if self.windows:
            sequence.windows = tuple(
                group.start(num_tokens, num_cached, tail)
                for group, tail in zip(self.windows, match.tails or [()] * len(self.windows), strict=True)
            )

    def grow(self, sequence: SequenceState, num_tokens: int) -> bool:
        """Blocks for so many tokens of a sequence that decodes. False if there are too few: ask again."""
        while len(sequence.block_ids) * self.block_manager.block_size < num_tokens:
            if not self.block_manager.can_allocate(1):
                return False
            block = self.block_manager.grow(sequence.block_ids)
            sequence.block_ids = sequence.block_ids + array("q", (block,))
        return not sequence.windows or all(
            table.group.raise_claim(table, num_tokens) for table in sequence.windows
        )

    def prepare(self, chunks: Sequence[tuple[SequenceState, int]]) -> None:
        """Where layers have a window, allocate the blocks for a step's tokens. There are always enough."""
        for sequence, num_tokens in chunks if self.windows else ():
            stop = sequence.num_computed + num_tokens - 1 + self._max_tokens_per_step
            stop = min(stop, len(sequence.block_ids) * self.block_manager.block_size)
            for table in sequence.windows:
                table.group.extend(table, stop)

    def release(self, sequence: SequenceState) -> None:
        self.block_manager.free(sequence.block_ids)
        sequence.block_ids = NO_BLOCKS
        for table in sequence.windows:
            table.group.end(table)
        sequence.windows = ()
        if self._state_slots is not None and sequence.state_slots is not None:
            self._state_slots.give_back(sequence.state_slots)
            sequence.state_slots = None

    def reset(self) -> None:
        """Forget cached blocks; running sequences keep theirs."""
        self.block_manager.reset()
        for group in self.windows:
            group.block_manager.reset()

    def check_integrity(self, sequences: Collection[SequenceState]) -> None:
        """Raise RuntimeError if a block has leaked or belongs to a sequence that isn't running."""
        self.block_manager.check_integrity([sequence.block_ids for sequence in sequences])
        if self._state_slots is not None:
            self._state_slots.check_integrity(s.state_slots for s in sequences if s.state_slots is not None)
        for index, group in enumerate(self.windows):
            group.check_integrity([sequence.windows[index] for sequence in sequences if sequence.windows])
