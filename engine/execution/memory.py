"""How much memory the KV cache may use, and how many blocks to allocate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from engine.config import EngineConfig
from engine.errors import ConfigError, EngineError, OutOfMemory
from engine.execution.cache_division import CacheDivision
from host_limits.host_memory import host_available_bytes, host_total_bytes

_GIB = 1 << 30
_NEGLIGIBLE_BYTES = _GIB // 4  # of a GPU: what an idle driver or a desktop may use
_MAX_UTILIZATION = 0.95
CPU_CACHE_LIMIT_BYTES = 4 * _GIB  # unless more is requested
CPU_CACHE_SHARE = 0.25  # of the memory that is available when the engine starts
CPU_MEMORY_SHARE = 0.8  # of the same, if --max-model-len needs that much


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """What the KV cache may use: `default_bytes` normally, `limit_bytes` if one long sequence needs it."""

    default_bytes: int
    limit_bytes: int
    description: str = ""  # how much memory there is and what uses it, for errors
    remedy: str = ""  # how to get more
    total_bytes: int | None = None  # a cache can never be larger


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    num_blocks: int
    max_model_len: int  # as requested; else the model's own limit, or what fits if that is less
    window_blocks: Mapping[int, int] = field(default_factory=dict)  # see Runner in engine/core/batch.py
    num_state_slots: int = 0


def size_cache(
    config: EngineConfig, budget: MemoryBudget, *, division: CacheDivision, model_limit: int
) -> CacheSize:
    """The number of blocks, and the longest sequence. `model_limit` is the checkpoint's longest, in tokens.

    One sequence of the requested length must fit, or it could never finish: raises OutOfMemory if memory is
    short, ConfigError if other flags leave too little of it.
    """
    max_model_len = model_limit if config.max_model_len is None else config.max_model_len
    per_sequence = -(-max_model_len // config.block_size)
    num_blocks, source = _num_blocks(config, budget, division, per_sequence)
    whole, _ = _num_blocks(config, budget, division.undivided, per_sequence)
    gains = num_blocks >= whole and all(n < num_blocks for n in division.windows(num_blocks).values())
    if config.num_gpu_blocks_override is not None or not gains:  # the number given is that of every layer
        num_blocks, division = whole, division.undivided
    if config.max_model_len is None and num_blocks:
        max_model_len = min(model_limit, num_blocks * config.block_size)
    elif num_blocks < per_sequence:
        raise _too_small(config, budget, num_blocks, per_sequence, division, max_model_len, source)
    num_bytes = division.bytes_of(num_blocks)
    if budget.total_bytes is not None and num_bytes > budget.total_bytes:
        raise OutOfMemory(
            f"{source} asks for a KV cache of {_gib(num_bytes)}, but the machine has "
            f"{_gib(budget.total_bytes)} of memory. Lower it."
        )
    return CacheSize(
        num_blocks=num_blocks, max_model_len=max_model_len, window_blocks=division.windows(num_blocks)
    )


def _num_blocks(
    config: EngineConfig, budget: MemoryBudget, division: CacheDivision, per_sequence: int
) -> tuple[int, str]:
    """Of the layers that keep all, and what decides it."""
    if config.num_gpu_blocks_override is not None:
        return config.num_gpu_blocks_override, "--num-gpu-blocks-override"
    if config.kv_cache_memory_bytes is not None:
        return division.fit(config.kv_cache_memory_bytes), "--kv-cache-memory-bytes"
    num_blocks = division.fit(budget.default_bytes)
    if config.max_model_len is not None:
        num_blocks = max(num_blocks, min(per_sequence, division.fit(budget.limit_bytes)))
    return min(num_blocks, per_sequence * config.max_num_seqs), "the available memory"  # more is of no use


def _too_small(
    config: EngineConfig,
    budget: MemoryBudget,
    num_blocks: int,
    per_sequence: int,
    division: CacheDivision,
    max_model_len: int,
    source: str,
) -> EngineError:
    """An error with the numbers and the flags that would help."""
    text = (
        f"One sequence of {max_model_len} tokens needs {per_sequence} KV-cache blocks "
        f"({_gib(division.bytes_of(per_sequence))}), but {source} gives {num_blocks} "
        f"({_gib(division.bytes_of(num_blocks))})."
    )
    levers = []
    if num_blocks:
        levers.append(f"lower --max-model-len to {num_blocks * config.block_size} or less")
    if config.num_gpu_blocks_override is not None:
        levers.append(f"raise --num-gpu-blocks-override to {per_sequence}")
    elif config.kv_cache_memory_bytes is not None:
        levers.append(f"raise --kv-cache-memory-bytes to {division.bytes_of(per_sequence)}")
    else:
        if config.dtype == "float32":
            levers.append("halve it with --dtype bfloat16")
        levers.append(budget.remedy or "free memory")
        description = f" {budget.description}" if budget.description else ""
        return OutOfMemory(f"{text}{description} {_sentence(levers)}")
    return ConfigError(f"{text} {_sentence(levers)}")


def _sentence(levers: list[str]) -> str:
    text = ", or ".join(levers)
    return f"{text[:1].upper()}{text[1:]}."


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.3f} GiB"


def cpu_budget() -> MemoryBudget:
    available_bytes = host_available_bytes()
    return MemoryBudget(
        default_bytes=min(CPU_CACHE_LIMIT_BYTES, int(available_bytes * CPU_CACHE_SHARE)),
        limit_bytes=int(available_bytes * CPU_MEMORY_SHARE),
        description=f"{_gib(available_bytes)} of main memory are available, and a cache may use "
        f"{CPU_MEMORY_SHARE:.0%} of that.",
        remedy="free main memory that other programs and models use",
        total_bytes=host_total_bytes(),
    )


def cuda_budget(device: torch.device, utilization: float) -> MemoryBudget:
    """What is left of the share of a GPU's memory that the engine may use; OutOfMemory if nothing is left.

    Call it after a pass at full size: its peak allocation, weights included, is set aside, and so is the
    memory that other processes use.
    """
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    others_bytes = total_bytes - free_bytes - torch.cuda.memory_reserved(device)
    peak_bytes = torch.cuda.max_memory_allocated(device)
    left = int(total_bytes * utilization) - others_bytes - peak_bytes
    description = (
        f"The weights and one pass use {peak_bytes / _GIB:.2f} GiB and other processes "
        f"{others_bytes / _GIB:.2f} GiB of the GPU's {total_bytes / _GIB:.2f} GiB"
    )
    levers = ["stop other processes that use the GPU's memory"] if others_bytes > _NEGLIGIBLE_BYTES else []
    if peak_bytes + others_bytes < total_bytes and utilization < _MAX_UTILIZATION:
        levers.append("raise --gpu-memory-utilization")
    remedy = ", or ".join([*levers, "lower --max-num-batched-tokens"])
    if left <= 0:
        raise OutOfMemory(
            f"{description}: --gpu-memory-utilization {utilization} leaves no memory for the KV cache. "
            f"{_sentence([remedy])}"
        )
    return MemoryBudget(default_bytes=left, limit_bytes=left, description=f"{description}.", remedy=remedy)
