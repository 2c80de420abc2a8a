"""The harness that other tests divide models with."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.sleep import ALL_PARTS
from tests.engine.families.harness import (
    TOLERANCE,
    continues_greedily,
    core_of,
    generated,
    logits_difference,
    prompt_of,
)
from tests.engine.families.recipes import build, plain, save
from tests.engine.parallel.thread_ranks import ranks_in_threads


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_divided_engine_computes_what_plain_transformers_does(name: str, tmp_path: Path) -> None:
    """In chunks, in batches, preempted, and again after a sleep."""
    directory = save(build(name), tmp_path)
    with ranks_in_threads():
        core, model = core_of(directory, tensor_parallel_size=2), plain(directory)
    assert logits_difference(core, model) < TOLERANCE
    tokens = generated(core)
    for length, continuation in tokens.items():
        assert continues_greedily(model, prompt_of(length), continuation)
    assert core.stats().num_preemptions > 0
    core.sleep(2)
    core.wake_up(ALL_PARTS)
    assert logits_difference(core, model) < TOLERANCE
