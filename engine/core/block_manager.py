"""The paged KV cache's bookkeeping: which block belongs to whom, and which one holds what.

Knows nothing of tensors, requests or scheduling. A block is a number; a sequence's blocks are a list of
numbers that the caller keeps. Only full blocks are shared. A full block is known by its *key*: a 128-bit
BLAKE2b over its parent's key and its own tokens, so that equal keys mean an equal salt and equal tokens from
position 0 on.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from engine.errors import ConfigError

_KEY_BYTES = 16

# How far to look for blocks side by side, in blocks: bounded, so that an allocation stays cheap.
_SEARCHED_PER_BLOCK = 4
_SEARCHED_AT_LEAST = 64


class BlockManager:
    """Allocates, shares, evicts and frees blocks; every operation is O(1) per block.

    A block is in exactly one of three places: held (reference count > 0), blank (free, content worthless),
    or cached (free, content kept under its key until the block is needed; least recently used goes first).
    """

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ConfigError(
                f"A KV cache of {num_blocks} blocks of {block_size} tokens holds nothing: both must be > 0."
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._block_of_key: dict[bytes, int] = {}
        # OrderedDict is a doubly linked list with an index: pop at the head, append and remove are O(1).
        self._blank: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: OrderedDict[int, bytes] = OrderedDict()
        self._freed_at = [0] * num_blocks  # in frees, counted by _num_frees
        self._num_frees = 0
        self._next_run = 0  # where to look for room for the next sequence

    def __repr__(self) -> str:
        return (
            f"<BlockManager {self.num_blocks} x {self.block_size}: "
            f"{self.num_blocks - self.num_free_blocks} held, "
            f"{len(self._cached)} cached, {len(self._blank)} blank>"
        )

    @property
    def num_free_blocks(self) -> int:
        return len(self._blank) + len(self._cached)

    @property
    def usage(self) -> float:
        """The part of the cache that sequences hold, 0 … 1."""
        return 1 - self.num_free_blocks / self.num_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # Keys

    def extend_keys(self, keys: list[bytes], token_ids: Sequence[int], salt: bytes = b"") -> None:
        """Append the keys of those full blocks of `token_ids` that `keys` doesn't cover yet.

        `salt` stands before position 0: under different ones nothing is shared.
        """
        if not self.enable_prefix_caching:
            return
        parent = keys[-1] if keys else salt
        for start in range(
            len(keys) * self.block_size, len(token_ids) - self.block_size + 1, self.block_size
        ):
            tokens = array("q", token_ids[start : start + self.block_size]).tobytes()
            parent = blake2b(parent + tokens, digest_size=_KEY_BYTES).digest()
            keys.append(parent)

    def match(self, keys: Sequence[bytes], num_tokens: int) -> list[int]:
        """The blocks that already hold the beginning of a sequence of `num_tokens` tokens, in order.

        The last token is never covered: it has to run to give logits. Takes no hold of the blocks.
        """
        blocks = []
        for key in keys[: (num_tokens - 1) // self.block_size]:
            block = self._block_of_key.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def publish(self, block_ids: Sequence[int], keys: Sequence[bytes], start: int, stop: int) -> None:
        """Make blocks `start` … `stop` - 1 of a sequence findable: their keys and values are now written.

        Where another block holds the same content already, that one stays the findable one.
        """
        for block, key in zip(block_ids[start:stop], keys[start:stop], strict=False):
            if key not in self._block_of_key:
                self._block_of_key[key] = block
                self._keys[block] = key

    # Blocks

    def can_allocate(self, num_blocks: int, *, shared: Sequence[int] = ()) -> bool:
        """Whether `num_blocks` new blocks can be had beside the `shared` ones, which may be free now."""
        num_shared_free = sum(1 for block in shared if not self._ref_counts[block])
        return num_blocks <= self.num_free_blocks - num_shared_free

    def allocate(self, num_blocks: int, *, shared: Sequence[int] = (), room: int = 0) -> list[int]:
        """Take hold of the `shared` blocks and of `num_blocks` new ones; the caller has asked `can_allocate`.

        New blocks lie side by side where that is cheap to have, with free ones behind them for a sequence
        that may grow to `room` new blocks: attention can then read its keys without gathering them.
        """
        for block in shared:
            if not self._ref_counts[block]:
                del self._cached[block]
            self._ref_counts[block] += 1
        blocks = list(shared)
        if shared:
            for block in range(shared[-1] + 1, min(shared[-1] + 1 + num_blocks, self.num_blocks)):
                if not self._is_takable(block):
                    break
                blocks.append(self._take(block))
        num_missing = len(shared) + num_blocks - len(blocks)
        if num_missing:
            run = self._find_run(num_missing, room) if max(num_missing, room) > 1 else None
            blocks += [self._take(block) for block in run] if run else self._take_oldest(num_missing)
        return blocks

    def grow(self, block_ids: list[int]) -> None:
        """Append one new block to a sequence's; the caller has asked `can_allocate(1)`."""
        neighbour = block_ids[-1] + 1
        is_takable = neighbour < self.num_blocks and self._is_takable(neighbour)
        block_ids += [self._take(neighbour)] if is_takable else self._take_oldest(1)

    def free(self, block_ids: Sequence[int]) -> None:
        """Let go of a sequence's blocks. Its tail is the first to be evicted: a prefix is of more use."""
        for block in reversed(block_ids):
            self._ref_counts[block] -= 1
            if self._ref_counts[block]:
                continue
            key = self._keys[block]
            self._num_frees += 1
            self._freed_at[block] = self._num_frees
            if key is None:
                self._blank[block] = None
            else:
                self._cached[block] = key

    def reset(self) -> None:
        """Forget what blocks hold, so that nothing is found before it is computed again.

        Those that sequences hold stay theirs.
        """
        self._keys = [None] * self.num_blocks
        self._block_of_key.clear()
        self._blank.update(dict.fromkeys(self._cached))
        self._cached.clear()

    def _is_takable(self, block: int) -> bool:
        """Whether a block may be taken for where it lies: blank, or of the longest unused half."""
        if block in self._blank:
            return True
        if block not in self._cached:
            return False
        oldest = self._freed_at[next(iter(self._cached))]
        return 2 * self._freed_at[block] <= oldest + self._num_frees

    def _find_run(self, count: int, room: int) -> range | None:
        """`count` takable blocks side by side, with takable ones behind them up to `room` if there are such.

        None if there are none near where the last run's room ended. Going round the cache like this takes
        blocks about in the order in which they were freed.
        """
        for wanted in (max(count, room), count):
            found = 0
            last = self._next_run + _SEARCHED_PER_BLOCK * wanted + _SEARCHED_AT_LEAST
            for position in range(self._next_run, last):
                block = position % self.num_blocks
                if block == 0:
                    found = 0  # a run doesn't go round the end
                found = found + 1 if self._is_takable(block) else 0
                if found == wanted:
                    first = block + 1 - wanted
                    self._next_run = (block + 1) % self.num_blocks
                    return range(first, first + count)
        return None

    def _take(self, block: int) -> int:
        """Hold a free block, whose content is forgotten."""
        if block in self._blank:
            del self._blank[block]
        else:
            del self._block_of_key[self._cached.pop(block)]
            self._keys[block] = None
        self._ref_counts[block] = 1
        return block

    def _take_oldest(self, count: int) -> list[int]:
        """Hold `count` blocks wherever they lie, in rising order: blank ones, then the longest unused."""
        return sorted(self._take(next(iter(self._blank or self._cached))) for _ in range(count))

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise RuntimeError unless the books agree with `tables`, the block lists of all live sequences."""
        held = Counter(block for table in tables for block in table)
        for block in range(self.num_blocks):
            key = self._keys[block]
            expected = (held[block], not held[block] and key is None, not held[block] and key is not None)
            actual = (self._ref_counts[block], block in self._blank, block in self._cached)
            if expected != actual:
                raise RuntimeError(
                    f"Block {block} should have (references, blank, cached) {expected}, has {actual}."
                )
        keyed = {key: block for block, key in enumerate(self._keys) if key is not None}
        if keyed != self._block_of_key:
            raise RuntimeError(f"{len(keyed)} blocks have a key, {len(self._block_of_key)} keys a block.")


class PromptKeys:
    """The keys of the last prompt asked for: the choices of a request share it, and have it hashed once."""

    def __init__(self, cache: BlockManager) -> None:
        self._cache = cache
        self._prompt: Sequence[int] | None = None
        self._salt = b""
        self._keys: list[bytes] = []

    def of(self, prompt_token_ids: Sequence[int], salt: bytes) -> list[bytes]:
        """A list of the caller's own."""
        if prompt_token_ids is not self._prompt or salt != self._salt:
            self._prompt, self._salt, self._keys = prompt_token_ids, salt, []
            self._cache.extend_keys(self._keys, prompt_token_ids, salt)
        return list(self._keys)
