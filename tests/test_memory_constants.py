"""The manager estimates the embedded engine's memory without importing it: its copies of facts are equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.execution import memory, runner
from engine.launch.flag_values import _UNITS, human_int
from instance_manager.backends import activation_size, engine_memory
from instance_manager.memory import kv_cache_size

ENGINE = EngineConfig(model=Path("model"))


def test_the_cpu_s_shares_are_the_engine_s() -> None:
    assert engine_memory._CPU_CACHE_LIMIT_BYTES == memory.CPU_CACHE_LIMIT_BYTES
    assert engine_memory._CPU_CACHE_SHARE == memory.CPU_CACHE_SHARE
    assert engine_memory._CPU_MEMORY_SHARE == memory.CPU_MEMORY_SHARE


def test_the_defaults_of_flags_are_the_engine_s() -> None:
    assert engine_memory._DEFAULT_MAX_NUM_SEQS == activation_size._MAX_NUM_SEQS == ENGINE.max_num_seqs
    assert ENGINE.block_size == kv_cache_size._DEFAULT_BLOCK_SIZE
    assert ENGINE.gpu_memory_utilization == kv_cache_size._DEFAULT_UTILIZATION
    assert ENGINE.max_num_batched_tokens == activation_size._MAX_NUM_BATCHED_TOKENS


def test_a_step_scores_as_many_logits_at_a_time_as_the_engine_does() -> None:
    assert activation_size._SCORED_LOGITS == runner._SCORED_LOGITS


@pytest.mark.parametrize("text", ["4096", "4k", "4K", "1.5g", "2G", "0.5M"])
def test_numbers_with_units_are_read_as_by_the_engine(text: str) -> None:
    assert kv_cache_size._UNITS == _UNITS
    assert kv_cache_size.quantity(text) == human_int(text)
