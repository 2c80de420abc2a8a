"""Models with windows free the blocks behind them: long texts in small caches, and the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.sleep import ALL_PARTS
from engine.core.types import EngineRequest, FinishReason
from engine.execution.build import build_core
from engine.execution.cache_division import CacheDivision
from tests.engine.families.harness import continues_greedily, prompt_of
from tests.engine.families.recipes import RECIPES, build, plain, save
from tests.engine.test_generation import greedy

WINDOW = 8
CONTEXT = 128
LENGTHS = (5, 9, 40, 70, 100)


@pytest.fixture(params=["cohere2", "gemma2", "gemma3_text", "gpt_oss", "olmo3"])
def directory(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in which one layer of three keeps all."""
    recipe = RECIPES[request.param]
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    mixed = replace(recipe, options={**recipe.options, "layer_types": layers})
    monkeypatch.setitem(RECIPES, request.param, mixed)
    return save(build(request.param), tmp_path)


def windowed(directory: Path, *, num_blocks: int = 40, **options: Any) -> EngineCore:
    """A core with so many blocks of the layers that keep all, and few of the others, all filled with NaN."""
    config = EngineConfig(
        model=directory,
        dtype="float32",
        device="cpu",
        num_threads=1,
        block_size=4,
        **{"max_num_batched_tokens": 16, "max_num_seqs": 4, "kv_cache_memory_bytes": 1 << 24, **options},
    )
    probe: Any = build_core(config)._runner
    division = CacheDivision.of(probe._residency.model.attention_specs, 4, config, CONTEXT)
    core = build_core(replace(config, kv_cache_memory_bytes=division.bytes_of(num_blocks)))
    runner: Any = core._runner
    assert runner.num_blocks == num_blocks
    assert runner.window_blocks == {WINDOW: 4 + num_blocks // 4}
    with torch.inference_mode():
        for tensor in runner._residency.cache.tensors():
            tensor.fill_(math.nan)
    return core


def run_all(core: EngineCore, requests: Sequence[EngineRequest]) -> dict[str, list[int]]:
    for request in requests:
        core.add(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while core.has_work:
        for delta in core.step():
            assert delta.error is None, delta.error
            tokens[delta.request_id] += delta.token_ids
        core.check_integrity()
    return tokens


def test_long_texts_in_few_blocks(directory: Path) -> None:
    """In chunks, side by side, and again after a sleep."""
    core, model = windowed(directory), plain(directory)
    requests = [greedy(str(length), prompt_of(length), 24) for length in LENGTHS]
    tokens = run_all(core, requests)
    for length in LENGTHS:
        assert continues_greedily(model, prompt_of(length), tokens[str(length)]), length
    core.sleep(1)
    core.wake_up(ALL_PARTS)
    assert run_all(core, requests) == tokens


def test_a_prefix_is_found_where_its_window_is_still_cached(directory: Path) -> None:
    """As in the next turn of a chat, and for a text that parts from the first behind its window."""
    core, model = windowed(directory), plain(directory)
    prompt = prompt_of(70)
    answer = run_all(core, [greedy("first", prompt, 9)])["first"]
    turns = {"next": [*prompt, *answer, 5, 6, 7], "parting": [*prompt[:50], *prompt_of(9)]}
    for name, text in turns.items():
        hits = core.stats().prefix_cache_hits
        tokens = run_all(core, [greedy(name, text, 20)])[name]
        assert continues_greedily(model, text, tokens)
        found = core.stats().prefix_cache_hits - hits
        assert found >= 70 if name == "next" else found <= 48, (name, found)


@pytest.mark.parametrize("directory", ["gemma3_text"], indirect=True)
def test_preemptions_choices_and_aborts(directory: Path) -> None:
    core, model = windowed(directory), plain(directory)
    prompt = prompt_of(37)
    choices = [replace(greedy(f"c{n}", prompt, 30), group="c") for n in range(3)]
    others = [greedy(str(length), prompt_of(length), 40) for length in (50, 64, 90)]
    gone = greedy("gone", prompt_of(61), 90)
    for request in (gone, *choices):
        core.add(request)
    for _ in range(9):
        core.step()
    delta = core.abort("gone")
    assert delta is not None and delta.finish_reason is FinishReason.ABORT
    core.check_integrity()
    while core.has_work:
        core.step()
    tokens = run_all(core, [*choices, *others])
    assert core.stats().num_preemptions > 0
    assert tokens["c0"] == tokens["c1"] == tokens["c2"]
    assert continues_greedily(model, prompt, tokens["c0"])
    for request in others:
        assert continues_greedily(model, request.prompt_token_ids, tokens[request.request_id])
    assert core.stats().kv_cache_usage == 0
