"""Which tokens of a sequence need not be computed: they are cached, or will be once others have run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.core.block_manager import PromptHashes
from engine.core.block_tables import BlockTables, PrefixMatch
from engine.core.sequence import SequenceState


class PrefixCache:
    def __init__(self, tables: BlockTables) -> None:
        self._tables = tables
        self._block_manager = tables.block_manager
        self._prompt_hashes = PromptHashes(self._block_manager)
        self.num_queries = 0  # tokens looked up
        self.num_hits = 0  # tokens found

    def find(self, sequence: SequenceState, running: Iterable[SequenceState]) -> PrefixMatch | None:
        """The cached blocks that match the prefix of a waiting sequence; None if it should wait for more.

        None match while logprobs of the prompt are pending: those need every position to run.
        """
        if sequence.num_unscored:
            return PrefixMatch()
        request = sequence.request
        if not sequence.block_hashes:
            sequence.block_hashes = self._prompt_hashes.of(request.prompt_token_ids, request.cache_salt)
        self._block_manager.extend_hashes(sequence.block_hashes, sequence.token_ids, request.cache_salt)
        shared = self._block_manager.match_prefix(sequence.block_hashes, len(sequence.token_ids))
        match = self._within_windows(sequence.block_hashes, shared)
        return None if self._is_being_computed(sequence, len(match.blocks), running) else match

    def _within_windows(self, hashes: Sequence[bytes], blocks: list[int]) -> PrefixMatch:
        """As much of a match as is cached in every group with a window, too."""
        if not self._tables.windows:
            return PrefixMatch(blocks)
        while True:
            found = [group.tail_of(hashes, len(blocks)) for group in self._tables.windows]
            shortest = min(length for length, _ in found)
            if shortest == len(blocks):
                return PrefixMatch(blocks, [tail for _, tail in found])
            blocks = blocks[:shortest]

    def count_lookup(self, num_tokens: int, num_cached_tokens: int) -> None:
        self.num_queries += num_tokens if self._block_manager.enable_prefix_caching else 0
        self.num_hits += num_cached_tokens

    def advance(self, sequence: SequenceState, num_tokens: int) -> None:
        """Record that `num_tokens` more of a sequence are computed, and cache the blocks that they filled.

        Blocks now behind a window are freed; they stay cached until they are needed.
        """
        first = sequence.num_computed // self._block_manager.block_size
        sequence.num_computed += num_tokens
        stop = sequence.num_computed // self._block_manager.block_size
        if stop > first:
            salt = sequence.request.cache_salt
            self._block_manager.extend_hashes(sequence.block_hashes, sequence.token_ids, salt)
            self._block_manager.cache_blocks(sequence.block_ids, sequence.block_hashes, first, stop)
        for table in sequence.windows:
            manager = table.group.block_manager
            manager.cache_blocks(table.block_ids, sequence.block_hashes, first, stop)
            table.group.free_behind(table, sequence.num_computed)

    def _is_being_computed(
        self, sequence: SequenceState, index: int, running: Iterable[SequenceState]
    ) -> bool:
        """Whether a running prefill will write the first block that `sequence` misses.

        It is then worth waiting for: of `n` samples of one prompt, only the first computes it.
        """
        num_hashes, block_size = len(sequence.block_hashes), self._block_manager.block_size
        if index >= min(num_hashes, (len(sequence.token_ids) - 1) // block_size):
            return False
        block_hash, end = sequence.block_hashes[index], (index + 1) * block_size
        return any(
            other.num_computed < end
            and index < len(other.block_hashes)
            and other.block_hashes[index] == block_hash
            for other in running
        )
