"""The KV cache as vLLM's `cache_config_info` describes it: labels and values, spelt as Python would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.config import EngineConfig
from engine.core.block_manager import BlockManager
from engine.core.window_groups import WindowGroup


def describe_cache(
    config: EngineConfig,
    block_manager: BlockManager,
    windows: Sequence[WindowGroup] = (),
    *,
    max_model_len: int,
) -> Mapping[str, str]:
    """The cache as it was built, with the values chosen for what the flags left open."""
    num_tokens = block_manager.num_blocks * block_manager.block_size
    described = {
        "block_size": block_manager.block_size,
        "cache_dtype": "auto",  # the weights' own
        "enable_prefix_caching": block_manager.enable_prefix_caching,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "is_attention_free": False,
        # Requests of full length at a time
        "kv_cache_max_concurrency": min(
            [num_tokens / max_model_len, *(group.max_concurrency for group in windows)]
        ),
        "kv_cache_memory_bytes": config.kv_cache_memory_bytes,
        "kv_cache_size_tokens": num_tokens,
        "num_cpu_blocks": None,
        "num_gpu_blocks": block_manager.num_blocks,
        "num_gpu_blocks_override": config.num_gpu_blocks_override,
        "prefix_caching_hash_algo": "blake2b",
        "sliding_window": min((group.window for group in windows), default=None),
    }
    return {name: str(value) for name, value in described.items()}
