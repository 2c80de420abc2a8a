from __future__ import annotations

import pytest

from engine.core.block_manager import BlockManager
from engine.errors import ConfigError


def keys_of(cache: BlockManager, tokens: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    cache.extend_keys(keys, tokens)
    return keys


def fill(cache: BlockManager, tokens: list[int]) -> list[int]:
    """A sequence that has computed all its tokens, not sharing anything."""
    blocks = cache.allocate(cache.num_blocks_for(len(tokens)))
    cache.publish(blocks, keys_of(cache, tokens), 0, len(tokens) // cache.block_size)
    return blocks


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0)])
def test_a_cache_of_nothing_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ConfigError, match=f"{num_blocks} blocks of {block_size}"):
        BlockManager(num_blocks, block_size)


def test_blocks_are_counted_out_and_back() -> None:
    cache = BlockManager(4, 4)
    assert [cache.num_blocks_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    blocks = cache.allocate(3)
    assert (cache.num_free_blocks, cache.usage) == (1, 0.75)
    assert cache.can_allocate(1) and not cache.can_allocate(2)
    cache.check_integrity([blocks])
    cache.free(blocks)
    assert (cache.num_free_blocks, cache.usage) == (4, 0.0)
    cache.check_integrity([])
    assert repr(cache) == "<BlockManager 4 x 4: 0 held, 0 cached, 4 blank>"


def test_a_sequence_gets_neighbouring_blocks() -> None:
    cache = BlockManager(8, 4)
    first, second = cache.allocate(2), cache.allocate(2)
    assert (first, second) == ([0, 1], [2, 3])
    cache.grow(second)
    assert second == [2, 3, 4]
    cache.grow(first)  # its neighbour is taken
    assert first == [0, 1, 5]
    cache.free(second)
    third = cache.allocate(4, shared=[first[0]])
    assert third == [0, 3, 4, 6, 7]  # what was freed comes back in rising order too
    cache.check_integrity([first, third])


def test_equal_keys_need_an_equal_beginning() -> None:
    cache = BlockManager(4, 2)
    a, b = keys_of(cache, [1, 2, 3, 4, 5]), keys_of(cache, [9, 2, 3, 4])
    assert len(a) == 2 and len(b) == 2  # only full blocks have one
    assert a[0] != b[0] and a[1] != b[1]  # the same tokens in the second block, but another past
    assert keys_of(cache, [1, 2, 3, 5])[0] == a[0]
    grown = a[:1]
    cache.extend_keys(grown, [1, 2, 3, 4, 5, 6])
    assert grown[:2] == a and len(grown) == 3
    assert len({*keys_of(cache, [12, 1]), *keys_of(cache, [1, 21]), *keys_of(cache, [1, 2])}) == 3


def test_a_prefix_is_found_but_never_the_last_token() -> None:
    cache = BlockManager(8, 2)
    tokens = [1, 2, 3, 4, 5, 6]
    blocks = fill(cache, tokens)
    keys = keys_of(cache, tokens)
    assert cache.match(keys, 7) == blocks
    assert cache.match(keys, 6) == blocks[:2]
    assert cache.match(keys_of(cache, [1, 2, 3, 9, 5, 6]), 6) == blocks[:1]
    assert cache.match(keys_of(cache, [7, 7]), 3) == []


def test_shared_blocks_are_freed_with_their_last_holder() -> None:
    cache = BlockManager(4, 2)
    first = fill(cache, [1, 2, 3, 4])
    second = cache.allocate(1, shared=first)
    assert second[:2] == first and cache.num_free_blocks == 1
    cache.check_integrity([first, second])
    cache.free(first)
    assert cache.num_free_blocks == 1
    cache.free(second)
    assert cache.num_free_blocks == 4
    cache.check_integrity([])


def test_free_shared_blocks_count_as_needed() -> None:
    cache = BlockManager(4, 2)
    shared = fill(cache, [1, 2, 3, 4])
    assert cache.can_allocate(2, shared=shared)  # another sequence holds them
    cache.free(shared)
    assert cache.num_free_blocks == 4
    assert cache.can_allocate(2, shared=shared) and not cache.can_allocate(3, shared=shared)
    table = cache.allocate(2, shared=shared)
    cache.check_integrity([table])
    assert cache.num_free_blocks == 0


def test_content_is_evicted_last_and_from_its_tail() -> None:
    cache = BlockManager(6, 2)
    old, new = fill(cache, [1, 2, 3, 4]), fill(cache, [5, 6, 7, 8])
    cache.free(old)
    cache.free(new)
    blank = cache.allocate(2)  # what holds nothing goes first
    assert not set(blank) & {*old, *new}
    table: list[int] = cache.allocate(1)
    assert table == [old[1]]  # then the least recently used, and of that the tail
    assert cache.match(keys_of(cache, [1, 2, 3, 4]), 5) == old[:1]
    assert cache.match(keys_of(cache, [5, 6, 7, 8]), 5) == new
    cache.check_integrity([blank, table])
    used_again = cache.allocate(0, shared=old[:1])
    cache.free(used_again)
    cache.grow(table)
    cache.grow(table)
    assert set(table) == {old[1], *new}  # using a prefix keeps it
    cache.check_integrity([blank, table])


def test_sequences_that_grow_side_by_side_stay_in_one_piece() -> None:
    cache = BlockManager(64, 2)
    for _ in range(10):  # the cache is full of old content from the third round on
        tables = [cache.allocate(4, room=10) for _ in range(3)]
        for _ in range(6):
            for table in tables:
                cache.grow(table)
        for number, table in enumerate(tables):
            assert table == list(range(table[0], table[0] + 10))
            keys = keys_of(cache, [cache.num_free_blocks, number, *range(18)])
            cache.publish(table, keys, 0, 10)
        cache.check_integrity(tables)
        for table in tables:
            cache.free(table)


def test_what_was_used_of_late_is_not_taken_for_where_it_lies() -> None:
    cache = BlockManager(8, 2)
    tables = [fill(cache, [number, number + 10, number + 20, number + 30]) for number in range(4)]
    for table in tables:
        cache.free(table)
    taken = cache.allocate(3, room=4)
    assert cache.match(keys_of(cache, [3, 13, 23, 33]), 5) == tables[3]
    assert cache.match(keys_of(cache, [2, 12, 22, 32]), 5) == tables[2]
    cache.check_integrity([taken])


def test_the_same_content_is_published_once() -> None:
    cache = BlockManager(4, 2)
    first, second = fill(cache, [1, 2]), fill(cache, [1, 2])
    assert first != second
    assert cache.match(keys_of(cache, [1, 2]), 3) == first
    cache.free(second)
    assert repr(cache) == "<BlockManager 4 x 2: 1 held, 0 cached, 3 blank>"
    cache.check_integrity([first])


def test_without_prefix_caching_nothing_is_shared() -> None:
    cache = BlockManager(4, 2, enable_prefix_caching=False)
    blocks = fill(cache, [1, 2, 3, 4])
    assert keys_of(cache, [1, 2, 3, 4]) == []
    cache.free(blocks)
    assert repr(cache) == "<BlockManager 4 x 2: 0 held, 0 cached, 4 blank>"


def test_wrong_books_are_noticed() -> None:
    cache = BlockManager(4, 2)
    blocks = fill(cache, [1, 2, 3, 4])
    with pytest.raises(RuntimeError, match="Block 0 should have"):
        cache.check_integrity([])
    cache.free(blocks)
    with pytest.raises(RuntimeError, match="Block 1 should have"):
        cache.check_integrity([[1]])
    cache._block_of_key.popitem()
    with pytest.raises(RuntimeError, match="2 blocks have a key, 1 keys a block"):
        cache.check_integrity([])


def test_keys_under_different_salts_differ_from_the_first_block_on() -> None:
    cache = BlockManager(4, 2)
    tokens = [1, 2, 3, 4]
    salted: list[list[bytes]] = [[], [], []]
    for keys, salt in zip(salted, (b"", b"a" * 16, b"b" * 16), strict=True):
        cache.extend_keys(keys, tokens, salt)
        grown = keys[:1]
        cache.extend_keys(grown, tokens, salt)
        assert grown == keys
    assert len({key for keys in salted for key in keys}) == 6
