"""The paged KV cache's bookkeeping: who uses each block, and what it contains.

Knows nothing of tensors, requests or scheduling. A block is a number; a sequence's blocks are a list of
numbers that the caller keeps. Only full blocks are shared. A full block is identified by its hash: a 128-bit
BLAKE2b over its parent's hash and its own tokens, so that equal hashes mean an equal salt and equal tokens
from position 0 on.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from engine.errors import ConfigError

_HASH_BYTES = 16

# How many blocks to search for adjacent ones: bounded, so that an allocation stays cheap.
_SEARCHED_PER_BLOCK = 4
_SEARCHED_AT_LEAST = 64


class BlockManager:
    """Allocates, shares, evicts and frees blocks; every operation is O(1) per block.

    A block is in exactly one of three states: allocated (reference count > 0), empty (free, without content)
    or cached (free, its content kept under its hash until the block is needed; evicted in LRU order).
    """

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ConfigError(
                f"A KV cache of {num_blocks} blocks of {block_size} tokens is empty: both must be > 0."
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._block_hashes: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        # OrderedDict is a doubly linked list with an index: pop at the head, append and remove are O(1).
        self._empty: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: OrderedDict[int, bytes] = OrderedDict()
        self._freed_at = [0] * num_blocks  # in frees, counted by _num_frees
        self._num_frees = 0
        self._next_run = 0  # where to search for the next sequence's blocks

    def __repr__(self) -> str:
        return (
            f"<BlockManager {self.num_blocks} x {self.block_size}: "
            f"{self.num_blocks - self.num_free_blocks} allocated, "
            f"{len(self._cached)} cached, {len(self._empty)} empty>"
        )

    @property
    def num_free_blocks(self) -> int:
        return len(self._empty) + len(self._cached)

    @property
    def usage(self) -> float:
        """The fraction of blocks that are allocated, 0 … 1."""
        return 1 - self.num_free_blocks / self.num_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # Hashes

    def extend_hashes(self, hashes: list[bytes], token_ids: Sequence[int], salt: bytes = b"") -> None:
        """Append the hashes of the full blocks of `token_ids` that `hashes` doesn't cover yet.

        `salt` precedes position 0: nothing is shared between different salts.
        """
        if not self.enable_prefix_caching:
            return
        parent = hashes[-1] if hashes else salt
        for start in range(
            len(hashes) * self.block_size, len(token_ids) - self.block_size + 1, self.block_size
        ):
            tokens = array("q", token_ids[start : start + self.block_size]).tobytes()
            parent = blake2b(parent + tokens, digest_size=_HASH_BYTES).digest()
            hashes.append(parent)

    def match_prefix(self, hashes: Sequence[bytes], num_tokens: int) -> list[int]:
        """The blocks that already contain a prefix of a sequence of `num_tokens` tokens, in order.

        Never covers the last token, which must run to produce logits. Does not allocate the blocks.
        """
        blocks = []
        for block_hash in hashes[: (num_tokens - 1) // self.block_size]:
            block = self._block_of_hash.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def find(self, block_hash: bytes) -> int | None:
        """The block with this content."""
        return self._block_of_hash.get(block_hash)

    def cache_blocks(self, block_ids: Sequence[int], hashes: Sequence[bytes], start: int, stop: int) -> None:
        """Let `match_prefix` find blocks `start` … `stop` - 1 of a sequence, whose contents are now written.

        If another block already has the same content, `match_prefix` keeps returning that one.
        """
        for block, block_hash in zip(block_ids[start:stop], hashes[start:stop], strict=False):
            if block_hash not in self._block_of_hash:
                self._block_of_hash[block_hash] = block
                self._block_hashes[block] = block_hash

    # Blocks

    def can_allocate(self, num_blocks: int, *, shared: Sequence[int] = ()) -> bool:
        """Whether `num_blocks` new blocks are available beside the `shared` ones, which may be free now."""
        num_shared_free = sum(1 for block in shared if not self._ref_counts[block])
        return num_blocks <= self.num_free_blocks - num_shared_free

    def allocate(self, num_blocks: int, *, shared: Sequence[int] = (), reserved: int = 0) -> list[int]:
        """Allocate the `shared` blocks and `num_blocks` new ones; the caller has checked `can_allocate`.

        New blocks are adjacent where that is cheap, and followed by free ones for a sequence that may grow to
        `reserved` new blocks: attention can then read its keys without gathering them.
        """
        for block in shared:
            if not self._ref_counts[block]:
                del self._cached[block]
            self._ref_counts[block] += 1
        blocks = list(shared)
        if shared:
            for block in range(shared[-1] + 1, min(shared[-1] + 1 + num_blocks, self.num_blocks)):
                if not self._is_reusable(block):
                    break
                blocks.append(self._allocate_block(block))
        num_missing = len(shared) + num_blocks - len(blocks)
        if num_missing:
            run = self._find_run(num_missing, reserved) if max(num_missing, reserved) > 1 else None
            blocks += (
                [self._allocate_block(block) for block in run] if run else self._allocate_oldest(num_missing)
            )
        return blocks

    def grow(self, block_ids: Sequence[int]) -> int:
        """Allocate a block to follow a sequence's; the caller has checked `can_allocate(1)`."""
        neighbour = block_ids[-1] + 1
        is_reusable = neighbour < self.num_blocks and self._is_reusable(neighbour)
        return self._allocate_block(neighbour) if is_reusable else self._allocate_oldest(1)[0]

    def free(self, block_ids: Sequence[int]) -> None:
        """Release a sequence's blocks. Its tail is evicted first, as a prefix is more useful."""
        for block in reversed(block_ids):
            self._ref_counts[block] -= 1
            if self._ref_counts[block]:
                continue
            block_hash = self._block_hashes[block]
            self._num_frees += 1
            self._freed_at[block] = self._num_frees
            if block_hash is None:
                self._empty[block] = None
            else:
                self._cached[block] = block_hash

    def reset(self) -> None:
        """Forget the content of all blocks, so that no prefix matches before it is computed again.

        Allocated blocks stay allocated.
        """
        self._block_hashes = [None] * self.num_blocks
        self._block_of_hash.clear()
        self._empty.update(dict.fromkeys(self._cached))
        self._cached.clear()

    def _is_reusable(self, block: int) -> bool:
        """Whether a block may be taken for its position: it is empty, or in the least recently used half."""
        if block in self._empty:
            return True
        if block not in self._cached:
            return False
        oldest = self._freed_at[next(iter(self._cached))]
        return 2 * self._freed_at[block] <= oldest + self._num_frees

    def _find_run(self, count: int, reserved: int) -> range | None:
        """`count` adjacent blocks that can be taken, followed by more of them up to `reserved` if possible.

        None if there are none near the end of the last run. Going round the cache like this takes blocks
        roughly in the order in which they were freed.
        """
        for wanted in (max(count, reserved), count):
            found = 0
            last = self._next_run + _SEARCHED_PER_BLOCK * wanted + _SEARCHED_AT_LEAST
            for position in range(self._next_run, last):
                block = position % self.num_blocks
                if block == 0:
                    found = 0  # a run doesn't wrap around
                found = found + 1 if self._is_reusable(block) else 0
                if found == wanted:
                    first = block + 1 - wanted
                    self._next_run = (block + 1) % self.num_blocks
                    return range(first, first + count)
        return None

    def _allocate_block(self, block: int) -> int:
        """Allocate a free block and forget its content."""
        if block in self._empty:
            del self._empty[block]
        else:
            del self._block_of_hash[self._cached.pop(block)]
            self._block_hashes[block] = None
        self._ref_counts[block] = 1
        return block

    def _allocate_oldest(self, count: int) -> list[int]:
        """Allocate `count` blocks at any position, in rising order: empty ones first, then in LRU order."""
        return sorted(self._allocate_block(next(iter(self._empty or self._cached))) for _ in range(count))

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise RuntimeError unless the state matches `tables`, the block tables of all live sequences."""
        uses = Counter(block for table in tables for block in table)
        for block in range(self.num_blocks):
            is_free, has_hash = not uses[block], self._block_hashes[block] is not None
            expected = (uses[block], is_free and not has_hash, is_free and has_hash)
            actual = (self._ref_counts[block], block in self._empty, block in self._cached)
            if expected != actual:
                raise RuntimeError(
                    f"Block {block} should have (references, empty, cached) {expected}, has {actual}."
                )
        hashed = {hash_: block for block, hash_ in enumerate(self._block_hashes) if hash_ is not None}
        if hashed != self._block_of_hash:
            raise RuntimeError(
                f"{len(hashed)} blocks have a hash, {len(self._block_of_hash)} hashes a block."
            )


class PromptHashes:
    """The block hashes of the last prompt: the choices of a request share a prompt, which is hashed once."""

    def __init__(self, block_manager: BlockManager) -> None:
        self._block_manager = block_manager
        self._prompt: Sequence[int] | None = None
        self._salt = b""
        self._block_hashes: list[bytes] = []

    def of(self, prompt_token_ids: Sequence[int], salt: bytes) -> list[bytes]:
        """A list that the caller may change."""
        if prompt_token_ids is not self._prompt or salt != self._salt:
            self._prompt, self._salt, self._block_hashes = prompt_token_ids, salt, []
            self._block_manager.extend_hashes(self._block_hashes, prompt_token_ids, salt)
        return list(self._block_hashes)
