"""What of a waiting sequence needn't be computed: it is in the cache, or will be when others have run."""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.block_manager import BlockManager, PromptKeys
from engine.core.sequence import SequenceState


class PrefixCache:
    def __init__(self, cache: BlockManager) -> None:
        self._cache = cache
        self._prompt_keys = PromptKeys(cache)

    def find(self, sequence: SequenceState, running: Iterable[SequenceState]) -> list[int] | None:
        """The cached blocks that a waiting sequence begins with; None if it should wait for more of them.

        None of them are of use while logprobs of the prompt are to come: those need every position to run.
        """
        if sequence.num_unscored:
            return []
        request = sequence.request
        if not sequence.keys:
            sequence.keys = self._prompt_keys.of(request.prompt_token_ids, request.cache_salt)
        self._cache.extend_keys(sequence.keys, sequence.token_ids, request.cache_salt)
        shared = self._cache.match(sequence.keys, len(sequence.token_ids))
        return None if self._is_being_computed(sequence, len(shared), running) else shared

    def _is_being_computed(
        self, sequence: SequenceState, index: int, running: Iterable[SequenceState]
    ) -> bool:
        """Whether a running prefill will write the first block that `sequence` misses.

        Then it is worth waiting for: of `n` samples of one prompt, only the first computes it.
        """
        if index >= min(len(sequence.keys), (len(sequence.token_ids) - 1) // self._cache.block_size):
            return False
        key, end = sequence.keys[index], (index + 1) * self._cache.block_size
        return any(
            other.num_computed < end and index < len(other.keys) and other.keys[index] == key
            for other in running
        )
