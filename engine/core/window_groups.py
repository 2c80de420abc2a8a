"""Cache groups of layers with a sliding window: the blocks behind the window are freed while a sequence runs.

Such layers have a pool of blocks of their own, and a sequence a block table of its own in it. How much of the
pool a sequence will hold is claimed when it starts and when it grows. What it holds is allocated step by
step; there are always enough blocks, as all claims together fit into the pool.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from engine.core.block_manager import BlockManager
from engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WindowNeeds:
    """How many blocks of a window's group are needed."""

    per_sequence: int  # the most that one holds, beside whole blocks that a step fills
    per_step: int  # whole blocks that one step fills, of all sequences together

    @staticmethod
    def of(
        window: int, block_size: int, *, max_num_batched_tokens: int, max_tokens_per_step: int = 1
    ) -> WindowNeeds:
        # Two more, as the window and a step's tokens begin inside blocks; guessed tokens take space beside.
        guessed = -(-(max_tokens_per_step - 1) // block_size)
        return WindowNeeds(-(-(window - 1) // block_size) + 2 + guessed, max_num_batched_tokens // block_size)


@dataclass(slots=True, eq=False)
class WindowTable:
    """One sequence's blocks in a group."""

    group: WindowGroup
    block_ids: array[int]  # by position; replaced, never changed. Those freed are 0.
    num_freed: int
    claim: int


class WindowGroup:
    """The pool of the layers with one window, and what sequences claim of it."""

    def __init__(self, block_manager: BlockManager, window: int, needs: WindowNeeds) -> None:
        """Raises ConfigError for a pool in which a sequence might not end."""
        self.block_manager = block_manager
        self.window = window
        self._needs = needs
        self._num_claimable = block_manager.num_blocks - needs.per_step
        self._num_claimed = 0
        self._num_growing = 0  # sequences that don't claim the most yet
        if self._num_claimable < needs.per_sequence:
            raise ConfigError(
                f"The layers with a window of {window} tokens need {needs.per_sequence + needs.per_step} "
                f"KV-cache blocks, and have {block_manager.num_blocks}: give the cache more memory, or lower "
                "--max-num-batched-tokens."
            )

    @property
    def max_concurrency(self) -> float:
        """How many sequences fit that are longer than the window."""
        return self._num_claimable / self._needs.per_sequence

    # Claims, of a sequence that has `num_tokens` after its next step

    def can_start(self, num_tokens: int) -> bool:
        """Whether one more sequence fits, and one block is left for each that can still grow."""
        return self._num_claimed + self._claim_of(num_tokens) + self._num_growing <= self._num_claimable

    def start(self, num_tokens: int, num_cached: int, tail: Sequence[int]) -> WindowTable:
        """A table whose first `num_cached` blocks are computed; `tail` are those of them in the window."""
        num_freed = num_cached - len(tail)
        blocks = self.block_manager.allocate(0, shared=tail)
        table = WindowTable(self, array("q", [*repeat(0, num_freed), *blocks]), num_freed, claim=0)
        self._set_claim(table, self._claim_of(num_tokens))
        return table

    def raise_claim(self, table: WindowTable, num_tokens: int) -> bool:
        """Whether the sequence may grow to so many tokens; alone, it always may."""
        claim = self._claim_of(num_tokens)
        if claim > table.claim:
            if self._num_claimed + claim - table.claim > self._num_claimable:
                return False
            self._set_claim(table, claim)
        return True

    def end(self, table: WindowTable) -> None:
        self.block_manager.free(table.block_ids[table.num_freed :])
        self._set_claim(table, 0)

    def _set_claim(self, table: WindowTable, claim: int) -> None:
        self._num_claimed += claim - table.claim
        self._num_growing += self._can_grow(claim) - self._can_grow(table.claim)
        table.claim = claim

    def _can_grow(self, claim: int) -> bool:
        return 0 < claim < self._needs.per_sequence

    def _claim_of(self, num_tokens: int) -> int:
        return min(self.block_manager.num_blocks_for(num_tokens), self._needs.per_sequence)

    # Blocks

    def extend(self, table: WindowTable, num_tokens: int) -> None:
        """Allocate the blocks of a step after which the sequence has at most `num_tokens`."""
        num_new = self.block_manager.num_blocks_for(num_tokens) - len(table.block_ids)
        if num_new > 0:
            table.block_ids = table.block_ids + array("q", self.block_manager.allocate(num_new))

    def free_behind(self, table: WindowTable, num_computed: int) -> None:
        """Free the blocks that no later token sees."""
        num_behind = max(0, num_computed - self.window + 1) // self.block_manager.block_size
        if num_behind > table.num_freed:
            self.block_manager.free(table.block_ids[table.num_freed : num_behind])
            table.block_ids = array("q", bytes(8 * num_behind)) + table.block_ids[num_behind:]
            table.num_freed = num_behind

    def tail_of(self, hashes: Sequence[bytes], num_blocks: int) -> tuple[int, list[int]]:
        """The longest prefix of at most `num_blocks` blocks whose window is still cached.

        Returns its length, and the blocks in its window.
        """
        while num_blocks:
            size = self.block_manager.block_size
            tail: list[int] = []
            for index in range(num_blocks - 1, max(0, num_blocks * size - self.window + 1) // size - 1, -1):
                block = self.block_manager.find(hashes[index])
                if block is None:
                    num_blocks = index
                    break
                tail.append(block)
            else:
                return num_blocks, tail[::-1]
        return 0, []

    def check_integrity(self, tables: Sequence[WindowTable]) -> None:
        """Raise RuntimeError if blocks or claims don't match the tables of all live sequences."""
        self.block_manager.check_integrity([table.block_ids[table.num_freed :] for table in tables])
        claims = [table.claim for table in tables]
        expected = sum(claims), sum(map(self._can_grow, claims))
        actual = self._num_claimed, self._num_growing
        if expected != actual:
            raise RuntimeError(
                f"The window of {self.window} should have (blocks claimed, sequences that grow) {expected}, "
                f"has {actual}."
            )
