"""Groups of layers with a window: what they hold, what they free, and what of a prefix they still have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.core.block_manager import BlockManager
from engine.core.types import SamplingParams
from engine.core.window_groups import WindowGroup, WindowNeeds
from engine.errors import ConfigError, OutOfMemory
from engine.execution.cache_division import CacheDivision
from engine.execution.memory import CacheSize, MemoryBudget, size_cache
from engine.models.attention.spec import AttentionSpec
from tests.engine.fake_runner import make_request, reference_output
from tests.engine.test_scheduler import Harness

WINDOW = 8
LEAST = 2 + 2 + 2  # of blocks of 4 tokens, with 8 tokens in a step


def harness_of(spare: int = 0, *, num_blocks: int = 200, **options: int) -> Harness:
    return Harness(
        num_blocks=num_blocks,
        budget=8,
        max_model_len=400,
        window_blocks={WINDOW: LEAST + spare},
        **options,  # type: ignore[arg-type]
    )


def test_a_long_sequence_holds_no_more_than_its_window() -> None:
    """The layers that keep all hold a hundred blocks in the end, the others three at most between steps."""
    harness = harness_of()
    request = make_request("a", [n % 40 for n in range(300)], max_tokens=90)
    harness.add(request)
    group, held = harness.scheduler._tables.windows[0].block_manager, []
    while harness.scheduler.has_work:
        harness.step()
        held.append(group.num_blocks - group.num_free_blocks)
    assert harness.outputs["a"] == reference_output(request)
    assert max(held) == 3 and harness.scheduler.stats().kv_cache_usage == 0


def test_as_many_run_as_their_windows_fit() -> None:
    harness = harness_of(spare=4)
    requests = [make_request(name, [number] * 30, max_tokens=8) for number, name in enumerate("abc")]
    harness.add(*requests)
    most = 0
    while harness.scheduler.has_work:
        harness.step()
        most = max(most, harness.scheduler.stats().num_requests_running)
    assert most == 2
    assert [harness.outputs[name] for name in "abc"] == [reference_output(one) for one in requests]


def test_short_sequences_claim_what_they_have_and_are_preempted_when_they_grow() -> None:
    harness = harness_of(spare=2, max_num_seqs=3)
    requests = [make_request(name, [number], max_tokens=30) for number, name in enumerate("abc")]
    harness.add(*requests)
    assert len(harness.step().sequences) == 3
    harness.finish()
    assert harness.scheduler.stats().num_preemptions > 0
    assert [harness.outputs[name] for name in "abc"] == [reference_output(one) for one in requests]


def test_choices_share_a_prompt_and_its_window() -> None:
    harness = harness_of(spare=20)
    prompt = [n % 7 for n in range(45)]
    choices = [
        make_request(str(seed), prompt, params=SamplingParams(max_tokens=9, seed=seed), group="n")
        for seed in range(3)
    ]
    harness.add(*choices)
    harness.finish()
    assert [harness.outputs[one.request_id] for one in choices] == [reference_output(one) for one in choices]
    assert harness.last["1"].num_cached_tokens == harness.last["2"].num_cached_tokens == 44


def test_a_prefix_needs_its_window_in_every_group() -> None:
    """What lies before it may be gone; without it, the match ends before the first block that is missing."""
    needs = WindowNeeds.of(WINDOW, 4, max_num_batched_tokens=8)
    manager = BlockManager(30, 4)
    group = WindowGroup(manager, WINDOW, needs)
    hashes: list[bytes] = []
    manager.extend_hashes(hashes, range(40))
    table = group.start(40, 0, [])
    group.extend(table, 40)
    manager.cache_blocks(table.block_ids, hashes, 4, 8)  # of the blocks 0 … 9, these are cached
    blocks = list(table.block_ids)
    assert group.tail_of(hashes, 10) == (8, blocks[6:8])
    assert group.tail_of(hashes, 6) == (6, blocks[4:6])
    assert group.tail_of(hashes, 5) == (0, [])
    with pytest.raises(RuntimeError, match="should have"):
        group.check_integrity([])
    group.end(table)
    group.check_integrity([])


def test_an_abort_in_the_middle_of_a_prompt_frees_all_groups() -> None:
    harness = harness_of()
    harness.add(make_request("gone", [1] * 60))
    for _ in range(3):
        harness.step()
    assert harness.scheduler.abort("gone") is not None
    harness.scheduler.check_integrity()
    assert harness.scheduler.stats().kv_cache_usage == 0


def test_a_pool_in_which_a_sequence_might_not_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="window of 8 tokens need 6 KV-cache blocks, and have 5"):
        harness_of(spare=-1)


# How memory is divided

KEEPING = AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=32, scale=1.0)  # 128 bytes in 16 bits
FREEING = AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=32, scale=1.0, window=512)
CONFIG = EngineConfig(model=Path("m"), block_size=16, max_num_seqs=64, max_num_batched_tokens=512)
MIXED = (KEEPING, *[FREEING] * 5)
MIB = 1 << 20


def sized(specs: tuple[AttentionSpec, ...], num_bytes: int, **options: Any) -> CacheSize:
    config = replace(CONFIG, **options)
    division = CacheDivision.of(specs, 2, config, config.max_model_len or 32768)
    budget = MemoryBudget(default_bytes=num_bytes, limit_bytes=num_bytes)
    return size_cache(config, budget, division=division, model_limit=32768)


def test_layers_with_a_window_leave_their_memory_to_the_others() -> None:
    """20 MiB hold 27,000 tokens of six layers, and texts of the full length where five free their blocks."""
    whole, divided = sized((KEEPING,) * 6, 20 * MIB), sized(MIXED, 20 * MIB)
    assert (whole.max_model_len, whole.window_blocks) == (27296, {})
    assert divided.max_model_len == 32768 and divided.num_blocks > 2 * whole.num_blocks
    assert divided.window_blocks == {512: 32 + divided.num_blocks // 4}
    used = (divided.num_blocks + 5 * divided.window_blocks[512]) * 16 * 128
    assert 20 * MIB - 16 * 128 * 10 < used <= 20 * MIB


@pytest.mark.parametrize(
    ("specs", "num_bytes", "options"),
    [
        ((KEEPING,) * 2, 20 * MIB, {}),
        ((FREEING,) * 6, 20 * MIB, {}),  # one group; its layers keep their blocks
        (MIXED, 20 * MIB, {"max_model_len": 1024}),  # no longer than window and step together
        (MIXED, MIB // 2, {}),  # too small for a window and a step
        (MIXED, 20 * MIB, {"num_gpu_blocks_override": 4096}),
    ],
    ids=["no window", "only windows", "short", "small", "override"],
)
def test_nothing_is_divided_where_that_gains_nothing(
    specs: tuple[AttentionSpec, ...], num_bytes: int, options: dict[str, int]
) -> None:
    divided = sized(specs, num_bytes, **options)
    assert divided == sized(tuple([KEEPING] * len(specs)), num_bytes, **options)
    assert divided.window_blocks == {}


def test_no_group_has_more_than_all_sequences_use() -> None:
    divided = sized(MIXED, 2000 * MIB, max_num_seqs=2)
    assert divided.num_blocks == 2 * 2048 and divided.window_blocks == {512: 32 + 2 * 34}


def test_memory_for_one_long_text_is_named_when_it_is_short() -> None:
    with pytest.raises(OutOfMemory, match=r"32768 tokens needs 2048 KV-cache blocks \(0\.0"):
        sized(MIXED, 4 * MIB, max_model_len=32768)
