"""How much KV cache an engine allocates at its start, from its flags and the model's configuration. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GIB = 1 << 30
_TORCH_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}

# The embedded engine's default on a CPU, as in engine/execution/memory.py.
_CPU_CACHE_LIMIT_BYTES = 4 * _GIB
_CPU_CACHE_SHARE = 0.25
_CPU_MEMORY_SHARE = 0.8
_DEFAULT_MAX_NUM_SEQS = 64
_DEFAULT_BLOCK_SIZE = 16
_VLLM_CPU_CACHE_GIB = 4.0
_DEFAULT_UTILIZATION = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine at an engine's start. `gpu_total_bytes`: of one of the engine's GPUs, 0 without any."""

    host_available_bytes: int
    num_gpus: int = 0
    gpu_total_bytes: int = 0


def kv_cache_bytes(
    engine: str,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    environ: Mapping[str, str],
    machine: Machine,
    fixed_bytes: int,
) -> int:
    """Bytes on all GPUs together, or on the host; 0 for a pooling model.

    `config`: config.json; `environ`: the engine's; `fixed_bytes`: what else it takes on all its GPUs.
    """
    if not generates(params, config):
        return 0
    requested = quantity(params.get("kv_cache_memory_bytes"))
    if requested is not None:
        return requested * max(machine.num_gpus, 1)  # the flag is per GPU
    text = decoder_config(config)
    block_bytes = _block_bytes(params, text)
    blocks = quantity(params.get("num_gpu_blocks_override"))
    if blocks is not None and block_bytes:
        return blocks * block_bytes
    if machine.num_gpus:
        share = _fraction(params.get("gpu_memory_utilization"))
        return max(int(machine.gpu_total_bytes * share) * machine.num_gpus - fixed_bytes, 0)
    if engine == "vllm":
        return int(_number(environ.get("VLLM_CPU_KVCACHE_SPACE"), _VLLM_CPU_CACHE_GIB) * _GIB)
    return _embedded_cpu_cache(params, text, block_bytes, machine)


def is_cache_size_set(params: Mapping[str, Any]) -> bool:
    """Whether a flag sets the size of the KV cache; otherwise the engine decides."""
    return bool(
        quantity(params.get("kv_cache_memory_bytes")) or quantity(params.get("num_gpu_blocks_override"))
    )


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text decoder's part, which vision-language models nest in `text_config`."""
    return {**config, **(config.get("text_config") or {})}


def generates(params: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the engine generates text with the model, not vectors or scores."""
    if params.get("runner", "auto") != "auto":
        return bool(params["runner"] == "generate")
    if params.get("convert", "auto") not in ("auto", "none"):
        return False
    architectures = config.get("architectures") or [""]
    return str(architectures[0]).endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))


def _embedded_cpu_cache(
    params: Mapping[str, Any], text: Mapping[str, Any], block_bytes: int, machine: Machine
) -> int:
    default_bytes = min(_CPU_CACHE_LIMIT_BYTES, int(machine.host_available_bytes * _CPU_CACHE_SHARE))
    if not block_bytes:
        return default_bytes
    max_len = quantity(params.get("max_model_len"))
    longest = max_len or quantity(text.get("max_position_embeddings")) or 1
    sequence = math.ceil(longest / _block_size(params)) * block_bytes
    if max_len is not None:
        default_bytes = max(
            default_bytes, min(sequence, int(machine.host_available_bytes * _CPU_MEMORY_SHARE))
        )
    return min(default_bytes, sequence * (quantity(params.get("max_num_seqs")) or _DEFAULT_MAX_NUM_SEQS))


def _block_size(params: Mapping[str, Any]) -> int:
    return quantity(params.get("block_size")) or _DEFAULT_BLOCK_SIZE


def _block_bytes(params: Mapping[str, Any], text: Mapping[str, Any]) -> int:
    """Keys and values of one block in all layers; 0 if the configuration lacks the sizes."""
    layers, heads = quantity(text.get("num_hidden_layers")), quantity(text.get("num_attention_heads"))
    hidden = quantity(text.get("hidden_size"))
    if not (layers and heads and hidden):
        return 0
    kv_heads = quantity(text.get("num_key_value_heads")) or heads
    head_dim = quantity(text.get("head_dim")) or hidden // heads
    value_bytes = dtype_bytes(params.get("dtype", "auto"), text) or 2
    return 2 * layers * kv_heads * head_dim * value_bytes * _block_size(params)


def dtype_bytes(dtype: object, config: Mapping[str, Any]) -> int | None:
    """Bytes of a weight in the engine's memory; None: as stored."""
    if dtype == "auto":
        dtype = config.get("dtype") or config.get("torch_dtype") or ""
    return _TORCH_BYTES.get(str(dtype).removeprefix("torch."))


_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}


def quantity(value: object) -> int | None:
    """A positive whole number as the engines' flags accept it (4096, "4k", "1.5G"); else None."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", str(value))
    number = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    return number or None


def _number(value: object, default: float) -> float:
    try:
        return float(str(value))
    except ValueError:
        return default


def _fraction(value: object) -> float:
    share = _number(value, _DEFAULT_UTILIZATION)
    return share if 0 < share <= 1 else _DEFAULT_UTILIZATION
