"""How many sequences' states there is room for. They get memory before the KV cache's blocks are counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from engine.config import EngineConfig
from engine.execution.memory import MemoryBudget
from engine.models.state.spec import StateSpec, bytes_per_slot

log = logging.getLogger(__name__)

_SHARE = 2  # with many sequences, states may use this part of the memory
_MIB = 1 << 20


def count_state_slots(
    config: EngineConfig, specs: Sequence[StateSpec], budget: MemoryBudget, *, longest_bytes: int = 0
) -> int:
    """Two for each sequence that may run, and one sequence may; 0 if no layer carries a state.

    `longest_bytes`: blocks of a sequence of --max-model-len, for which room is left.
    """
    if not specs:
        return 0
    num_sequences = config.max_num_seqs
    if config.num_gpu_blocks_override is None:
        num_bytes = config.kv_cache_memory_bytes or budget.default_bytes
        most = config.kv_cache_memory_bytes or budget.limit_bytes
        for_states = min(num_bytes // _SHARE, max(0, most - longest_bytes))
        fitting = for_states // (2 * bytes_per_slot(specs))
        num_sequences = max(1, min(num_sequences, fitting))
    return 2 * num_sequences


def tell_of_states(config: EngineConfig, specs: Sequence[StateSpec], num_slots: int) -> None:
    if not specs:
        return
    log.info(
        "This model carries a state from token to token (%.2f MiB per sequence): at most %d sequences run at "
        "a time%s. Prefix caching is off for it, and no CUDA graphs are recorded.",
        2 * bytes_per_slot(specs) / _MIB,
        num_slots // 2,
        "" if num_slots // 2 == config.max_num_seqs else ", as memory allows no more",
    )
