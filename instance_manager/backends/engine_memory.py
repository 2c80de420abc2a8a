"""What the embedded engine takes besides weights: on a CPU it allocates main memory on use. Pure.

The defaults are the engine's (engine/execution/memory.py, engine/config.py); a test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instance_manager.backends.activation_size import activations
from instance_manager.memory.checkpoint_size import Estimate, ModelLoad, Overhead
from instance_manager.memory.kv_cache_size import (
    Machine,
    block_bytes,
    block_size,
    decoder_config,
    dtype_bytes,
    generates,
    is_cache_size_set,
    quantity,
)

_MIB = 1 << 20
_GIB = 1 << 30

OVERHEAD = Overhead(448 * _MIB, 1 * _GIB)  # 300 MiB once it is ready, 90 of kernels for many shapes
_USED_OVERHEAD_BYTES = 288 * _MIB  # of each when several run and share their libraries' pages
_CPU_CACHE_LIMIT_BYTES = 4 * _GIB
_CPU_CACHE_SHARE = 0.25
_CPU_MEMORY_SHARE = 0.8
_DEFAULT_MAX_NUM_SEQS = 64
_PACKED_BYTES = 2  # per weight


def default_cpu_cache(load: ModelLoad, machine: Machine) -> int:
    """Bytes of the KV cache on a CPU, if no flag says so."""
    params, text = load.params, decoder_config(load.config)
    default_bytes = min(_CPU_CACHE_LIMIT_BYTES, int(machine.host_available_bytes * _CPU_CACHE_SHARE))
    size = block_bytes(params, text)
    if not size:
        return default_bytes
    max_len = quantity(params.get("max_model_len"))
    longest = max_len or quantity(text.get("max_position_embeddings")) or 1
    sequence = math.ceil(longest / block_size(params)) * size
    if max_len is not None:
        default_bytes = max(
            default_bytes, min(sequence, int(machine.host_available_bytes * _CPU_MEMORY_SHARE))
        )
    return min(default_bytes, sequence * (quantity(params.get("max_num_seqs")) or _DEFAULT_MAX_NUM_SEQS))


def on_a_cpu(found: Estimate, load: ModelLoad) -> Estimate:
    """An estimate with what the engine takes on a CPU only, and with the size that it will grow to."""
    weights_bytes = found.weights_bytes + _packed_head_bytes(load.params, load.config)
    steps = activations(load.params, load.config)
    num_processes = quantity(load.params.get("tensor_parallel_size", load.params.get("tp"))) or 1
    # A cache of default size may never be filled.
    cache_bytes = found.kv_cache_bytes if is_cache_size_set(load.params) else 0
    return replace(
        found,
        weights_bytes=weights_bytes,
        host_overhead_bytes=found.host_overhead_bytes * num_processes,
        step_bytes=steps.layers + steps.rest,
        grows_to_bytes=_USED_OVERHEAD_BYTES * num_processes + weights_bytes + cache_bytes + steps.layers,
    )


def _packed_head_bytes(params: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """A head tied to the embedding has a second, packed copy on the CPU if its weights are 16-bit."""
    text = decoder_config(config)
    value_bytes = dtype_bytes(params.get("dtype", "auto"), text)
    if value_bytes != _PACKED_BYTES or not text.get("tie_word_embeddings") or not generates(params, config):
        return 0
    return (quantity(text.get("vocab_size")) or 0) * (quantity(text.get("hidden_size")) or 0) * value_bytes
