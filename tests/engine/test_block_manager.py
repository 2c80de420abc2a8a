from __future__ import annotations

import pytest

from engine.core.block_manager import BlockManager
from engine.errors import ConfigError


def hashes_of(manager: BlockManager, tokens: list[int]) -> list[bytes]:
    hashes: list[bytes] = []
    manager.extend_hashes(hashes, tokens)
    return hashes


def fill(manager: BlockManager, tokens: list[int]) -> list[int]:
    """The blocks of a sequence that has computed all its tokens and shares none."""
    blocks = manager.allocate(manager.num_blocks_for(len(tokens)))
    manager.cache_blocks(blocks, hashes_of(manager, tokens), 0, len(tokens) // manager.block_size)
    return blocks


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0)])
def test_a_cache_of_nothing_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ConfigError, match=f"{num_blocks} blocks of {block_size}"):
        BlockManager(num_blocks, block_size)


def test_blocks_are_allocated_and_freed() -> None:
    manager = BlockManager(4, 4)
    assert [manager.num_blocks_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    blocks = manager.allocate(3)
    assert (manager.num_free_blocks, manager.usage) == (1, 0.75)
    assert manager.can_allocate(1) and not manager.can_allocate(2)
    manager.check_integrity([blocks])
    manager.free(blocks)
    assert (manager.num_free_blocks, manager.usage) == (4, 0.0)
    manager.check_integrity([])
    assert repr(manager) == "<BlockManager 4 x 4: 0 allocated, 0 cached, 4 empty>"


def test_a_sequence_gets_neighbouring_blocks() -> None:
    manager = BlockManager(8, 4)
    first, second = manager.allocate(2), manager.allocate(2)
    assert (first, second) == ([0, 1], [2, 3])
    second.append(manager.grow(second))
    assert second == [2, 3, 4]
    first.append(manager.grow(first))  # its neighbour is taken
    assert first == [0, 1, 5]
    manager.free(second)
    third = manager.allocate(4, shared=[first[0]])
    assert third == [0, 3, 4, 6, 7]  # freed blocks are reused in rising order too
    manager.check_integrity([first, third])


def test_equal_hashes_need_an_equal_prefix() -> None:
    manager = BlockManager(4, 2)
    a, b = hashes_of(manager, [1, 2, 3, 4, 5]), hashes_of(manager, [9, 2, 3, 4])
    assert len(a) == 2 and len(b) == 2  # only full blocks have a hash
    assert a[0] != b[0] and a[1] != b[1]  # the same tokens in the second block, but another past
    assert hashes_of(manager, [1, 2, 3, 5])[0] == a[0]
    grown = a[:1]
    manager.extend_hashes(grown, [1, 2, 3, 4, 5, 6])
    assert grown[:2] == a and len(grown) == 3
    assert len({*hashes_of(manager, [12, 1]), *hashes_of(manager, [1, 21]), *hashes_of(manager, [1, 2])}) == 3


def test_a_prefix_is_found_but_never_the_last_token() -> None:
    manager = BlockManager(8, 2)
    tokens = [1, 2, 3, 4, 5, 6]
    blocks = fill(manager, tokens)
    hashes = hashes_of(manager, tokens)
    assert manager.match_prefix(hashes, 7) == blocks
    assert manager.match_prefix(hashes, 6) == blocks[:2]
    assert manager.match_prefix(hashes_of(manager, [1, 2, 3, 9, 5, 6]), 6) == blocks[:1]
    assert manager.match_prefix(hashes_of(manager, [7, 7]), 3) == []


def test_shared_blocks_are_freed_with_their_last_holder() -> None:
    manager = BlockManager(4, 2)
    first = fill(manager, [1, 2, 3, 4])
    second = manager.allocate(1, shared=first)
    assert second[:2] == first and manager.num_free_blocks == 1
    manager.check_integrity([first, second])
    manager.free(first)
    assert manager.num_free_blocks == 1
    manager.free(second)
    assert manager.num_free_blocks == 4
    manager.check_integrity([])


def test_free_shared_blocks_count_as_needed() -> None:
    manager = BlockManager(4, 2)
    shared = fill(manager, [1, 2, 3, 4])
    assert manager.can_allocate(2, shared=shared)  # another sequence holds them
    manager.free(shared)
    assert manager.num_free_blocks == 4
    assert manager.can_allocate(2, shared=shared) and not manager.can_allocate(3, shared=shared)
    table = manager.allocate(2, shared=shared)
    manager.check_integrity([table])
    assert manager.num_free_blocks == 0


def test_content_is_evicted_last_and_from_its_tail() -> None:
    manager = BlockManager(6, 2)
    old, new = fill(manager, [1, 2, 3, 4]), fill(manager, [5, 6, 7, 8])
    manager.free(old)
    manager.free(new)
    empty = manager.allocate(2)  # empty blocks go first
    assert not set(empty) & {*old, *new}
    table: list[int] = manager.allocate(1)
    assert table == [old[1]]  # then the least recently used, and of that the tail
    assert manager.match_prefix(hashes_of(manager, [1, 2, 3, 4]), 5) == old[:1]
    assert manager.match_prefix(hashes_of(manager, [5, 6, 7, 8]), 5) == new
    manager.check_integrity([empty, table])
    used_again = manager.allocate(0, shared=old[:1])
    manager.free(used_again)
    table.append(manager.grow(table))
    table.append(manager.grow(table))
    assert set(table) == {old[1], *new}  # using a prefix keeps it
    manager.check_integrity([empty, table])


def test_sequences_that_grow_concurrently_stay_contiguous() -> None:
    manager = BlockManager(64, 2)
    for _ in range(10):  # the cache is full of old content from the third round on
        tables = [manager.allocate(4, reserved=10) for _ in range(3)]
        for _ in range(6):
            for table in tables:
                table.append(manager.grow(table))
        for number, table in enumerate(tables):
            assert table == list(range(table[0], table[0] + 10))
            hashes = hashes_of(manager, [manager.num_free_blocks, number, *range(18)])
            manager.cache_blocks(table, hashes, 0, 10)
        manager.check_integrity(tables)
        for table in tables:
            manager.free(table)


def test_recently_used_blocks_are_not_taken_for_their_position() -> None:
    manager = BlockManager(8, 2)
    tables = [fill(manager, [number, number + 10, number + 20, number + 30]) for number in range(4)]
    for table in tables:
        manager.free(table)
    taken = manager.allocate(3, reserved=4)
    assert manager.match_prefix(hashes_of(manager, [3, 13, 23, 33]), 5) == tables[3]
    assert manager.match_prefix(hashes_of(manager, [2, 12, 22, 32]), 5) == tables[2]
    manager.check_integrity([taken])


def test_the_same_content_is_cached_once() -> None:
    manager = BlockManager(4, 2)
    first, second = fill(manager, [1, 2]), fill(manager, [1, 2])
    assert first != second
    assert manager.match_prefix(hashes_of(manager, [1, 2]), 3) == first
    manager.free(second)
    assert repr(manager) == "<BlockManager 4 x 2: 1 allocated, 0 cached, 3 empty>"
    manager.check_integrity([first])


def test_without_prefix_caching_nothing_is_shared() -> None:
    manager = BlockManager(4, 2, enable_prefix_caching=False)
    blocks = fill(manager, [1, 2, 3, 4])
    assert hashes_of(manager, [1, 2, 3, 4]) == []
    manager.free(blocks)
    assert repr(manager) == "<BlockManager 4 x 2: 0 allocated, 0 cached, 4 empty>"


def test_inconsistent_bookkeeping_is_noticed() -> None:
    manager = BlockManager(4, 2)
    blocks = fill(manager, [1, 2, 3, 4])
    with pytest.raises(RuntimeError, match="Block 0 should have"):
        manager.check_integrity([])
    manager.free(blocks)
    with pytest.raises(RuntimeError, match="Block 1 should have"):
        manager.check_integrity([[1]])
    manager._block_of_hash.popitem()
    with pytest.raises(RuntimeError, match="2 blocks have a hash, 1 hashes a block"):
        manager.check_integrity([])


def test_hashes_under_different_salts_differ_from_the_first_block_on() -> None:
    manager = BlockManager(4, 2)
    tokens = [1, 2, 3, 4]
    salted: list[list[bytes]] = [[], [], []]
    for hashes, salt in zip(salted, (b"", b"a" * 16, b"b" * 16), strict=True):
        manager.extend_hashes(hashes, tokens, salt)
        grown = hashes[:1]
        manager.extend_hashes(grown, tokens, salt)
        assert grown == hashes
    assert len({block_hash for hashes in salted for block_hash in hashes}) == 6
