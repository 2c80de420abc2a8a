"""Layers that carry a state, by transformers' code on the engine's slots."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import Cache

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.sleep import ALL_PARTS
from engine.errors import ConfigError, UnsupportedModel
from engine.execution.build import _size_cache, build_core
from engine.execution.memory import CacheSize, MemoryBudget
from engine.execution.state_memory import count_state_slots
from engine.models.attention.spec import AttentionSpec
from engine.models.state.spec import StateSpec, StateTensor
from engine.models.transformers_backend.attention import Step
from engine.models.transformers_backend.mixers import Mixer
from engine.models.transformers_backend.state_probe import StateCall
from engine.models.transformers_backend.state_trial import examining
from tests.engine.families.harness import continues_greedily, core_of, prompt_of
from tests.engine.families.recipes import build, plain, save
from tests.engine.test_generation import greedy, run


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("olmo_hybrid"), tmp_path_factory.mktemp("states"))


@torch.inference_mode()
def fill_with_nan(core: EngineCore) -> None:
    runner: Any = core._runner
    for tensor in runner._residency.cache.tensors():
        tensor.fill_(math.nan)


def test_choices_aborts_sleep_and_what_slots_held_before(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    core, model = core_of(directory, num_gpu_blocks_override=24), plain(directory)
    assert caplog.text.count("Prefix caching is off for it") == 1
    fill_with_nan(core)
    before = core.memory.kv_cache
    choices = [replace(greedy(f"c{n}", prompt_of(20), 9), group="c") for n in range(3)]
    core.add(greedy("gone", prompt_of(9)))
    core.step()
    core.abort("gone")
    tokens = run(core, [*choices, greedy("short", [5], 12)])
    assert tokens["c0"] == tokens["c1"] == tokens["c2"]
    assert continues_greedily(model, prompt_of(20), tokens["c0"])
    assert continues_greedily(model, [5], tokens["short"])
    core.sleep(1)
    assert core.memory.kv_cache == 0
    core.wake_up(ALL_PARTS)
    assert core.memory.kv_cache == before
    fill_with_nan(core)
    assert run(core, [greedy("c0", prompt_of(20), 9)])["c0"] == tokens["c0"]
    core.check_integrity()


def test_a_model_without_attention_has_blocks_that_cost_nothing(tmp_path: Path) -> None:
    directory = save(build("mamba"), tmp_path)
    core = build_core(EngineConfig(model=directory, dtype="float32", device="cpu", num_threads=1))
    assert core.max_model_len >= 1 << 16, "Mamba knows no limit"
    tokens = run(core, [greedy(str(length), prompt_of(length), 9) for length in (1, 9, 40)])
    for length in (1, 9, 40):
        assert continues_greedily(plain(directory), prompt_of(length), tokens[str(length)])
    runner: Any = core._runner
    states = runner._residency.cache.states.tensors()
    assert core.memory.kv_cache == sum(tensor.nbytes for tensor in states)


def test_several_devices_are_refused(directory: Path) -> None:
    with pytest.raises(UnsupportedModel, match="--tensor-parallel-size"):
        core_of(directory, tensor_parallel_size=2)


class Summing(nn.Module):
    """Adds up all inputs; `forgets`, continues with nothing, or `adds` over the batch."""

    def __init__(self, *, forgets_chunks: bool = False, forgets: bool = False, adds: bool = False) -> None:
        super().__init__()
        self.forgets_chunks, self.forgets, self.adds = forgets_chunks, forgets, adds

    def forward(self, x: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        layer: Any = None if cache is None else cache.layers[0]
        state = None if layer is None else layer.recurrent_states[0]
        is_continued = layer is not None and layer.has_previous_state[0] and not self.forgets
        before = torch.zeros_like(x[:, :1])
        if is_continued and state is not None and not (self.forgets_chunks and x.shape[1] > 1):
            before = state
        sums = x.cumsum(dim=1) + before
        if self.adds:
            sums = sums + x.sum(dim=0, keepdim=True)
        if cache is not None:
            cache.update_recurrent_state(sums[:, -1:], 0)
            layer.has_previous_state[0] = True
        return sums


def tried(module: nn.Module) -> Mixer:
    mixer = Mixer(module, StateCall(0, 1, "cache"), 0, Step())
    with examining([mixer]):
        mixer(torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0)), cache=None)
    return mixer


def test_a_module_is_tried_before_it_is_trusted() -> None:
    assert not tried(Summing()).steps_by_token
    assert tried(Summing(forgets_chunks=True)).steps_by_token
    with pytest.raises(UnsupportedModel, match="Summing doesn't continue a text"):
        tried(Summing(forgets=True))
    with pytest.raises(UnsupportedModel, match="Summing computes two sequences at once"):
        tried(Summing(adds=True))


def test_states_get_half_of_the_memory_at_most() -> None:
    specs = [StateSpec((StateTensor("recurrent_states.0", (256,), torch.float32),))]
    config = EngineConfig(model=Path("nowhere"), max_num_seqs=8)

    def slots(num_bytes: int, **options: Any) -> int:
        budget = MemoryBudget(default_bytes=num_bytes, limit_bytes=num_bytes)
        return count_state_slots(replace(config, **options), specs, budget)

    assert slots(1 << 20) == 16
    assert slots(12 << 10) == 6
    assert slots(0) == 2, "one sequence, for which the error says what is missing"
    assert slots(0, num_gpu_blocks_override=9) == 16
    assert slots(1 << 20, kv_cache_memory_bytes=8 << 10) == 4


def test_states_leave_room_for_one_sequence_of_the_requested_length() -> None:
    """And as many bytes as an error says to give are enough."""
    model: Any = SimpleNamespace(
        attention_specs=[AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=64, scale=0.1)],
        state_specs=[StateSpec((StateTensor("recurrent_states.0", (1 << 18,), torch.float32),))],
        dtype=torch.float32,
        device=torch.device("cpu"),
        config=SimpleNamespace(max_position_embeddings=1 << 14),
    )

    def size(num_bytes: int) -> CacheSize:
        config = EngineConfig(model=Path("x"), kv_cache_memory_bytes=num_bytes, max_model_len=10 << 10)
        return _size_cache(config, model, NotImplemented, None)

    with pytest.raises(ConfigError, match="--kv-cache-memory-bytes gives 512") as caught:
        size(10 << 20)
    (needed,) = map(int, re.findall(r"raise --kv-cache-memory-bytes to (\d+)", caught.value.message))
    assert needed == 12 << 20, "10 MiB of blocks, and a pair of slots"
    assert [size(num << 20).num_state_slots for num in (12, 14, 20, 40)] == [2, 4, 10, 20]
