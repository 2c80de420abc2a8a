"""How the KV cache's memory is divided between layers that keep all blocks and layers with a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engine.config import EngineConfig
from engine.core.window_groups import WindowNeeds
from engine.models.attention.spec import AttentionSpec, bytes_per_token

# A group with a window has at least this part of the blocks of layers that keep all: many short sequences
# need as many in both, one as long as possible needs few here.
_SHARE = 4
_UNUSED_BLOCKS = 1 << 16  # at most, of a model without attention, beside those of its longest sequence


@dataclass(frozen=True, slots=True)
class CacheDivision:
    """Bytes are per token. Without windows, all layers have equally many blocks."""

    block_size: int
    kept_bytes: int  # of layers that keep all blocks
    window_bytes: Mapping[int, int] = field(default_factory=dict)  # by window, of layers that free blocks
    needs: Mapping[int, WindowNeeds] = field(default_factory=dict)  # by window
    max_num_seqs: int = 1
    longest: int = 1  # sequence, in blocks
    state_bytes: int = 0  # of all state slots, beside the blocks

    @staticmethod
    def of(
        specs: tuple[AttentionSpec, ...],
        element_size: int,
        config: EngineConfig,
        max_model_len: int,
        *,
        max_tokens_per_step: int = 1,
        state_bytes: int = 0,
    ) -> CacheDivision:
        """By window, where that needs less memory; the layers with the widest keep all if no others do."""
        needs = {
            window: WindowNeeds.of(
                window,
                config.block_size,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_tokens_per_step=max_tokens_per_step,
            )
            for window in {spec.window for spec in specs} - {None}
            if window is not None
        }
        longest = -(-max_model_len // config.block_size)
        freeing = {w for w, need in needs.items() if need.per_sequence + need.per_step < longest}
        if all(spec.window in freeing for spec in specs):
            freeing -= {max(freeing)} if freeing else set()
        sizes = {
            window: bytes_per_token((s for s in specs if s.window == window), element_size)
            for window in sorted(freeing)
        }
        return CacheDivision(
            config.block_size,
            bytes_per_token(specs, element_size) - sum(sizes.values()),
            sizes,
            {window: needs[window] for window in sizes},
            config.max_num_seqs,
            longest,
            state_bytes,
        )

    @property
    def undivided(self) -> CacheDivision:
        total = self.kept_bytes + sum(self.window_bytes.values())
        return replace(self, kept_bytes=total, window_bytes={}, needs={})

    def windows(self, num_blocks: int) -> dict[int, int]:
        """The blocks of each group with a window beside so many of the layers that keep all."""
        return {
            window: min(
                need.per_step + need.per_sequence * self.max_num_seqs,  # more could not be used
                need.per_step + max(need.per_sequence, num_blocks // _SHARE),
            )
            for window, need in self.needs.items()
        }

    def bytes_of(self, num_blocks: int) -> int:
        """Of a cache in which layers that keep all have so many blocks."""
        in_windows = sum(
            count * self.window_bytes[window] for window, count in self.windows(num_blocks).items()
        )
        return (num_blocks * self.kept_bytes + in_windows) * self.block_size + self.state_bytes

    def fit(self, num_bytes: int) -> int:
        """How many blocks those layers can have; 0 if none."""
        if num_bytes < self.state_bytes:
            return 0
        if not self.kept_bytes:  # no layer attends: blocks cost nothing but their numbers
            return min(self.longest * self.max_num_seqs, self.longest + _UNUSED_BLOCKS)
        most = (num_bytes - self.state_bytes) // (self.block_size * self.kept_bytes)
        if not self.needs:
            return most
        least = 0
        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if self.bytes_of(middle) <= num_bytes else (least, middle - 1)
        return least
