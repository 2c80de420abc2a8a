"""How much KV cache an engine allocates at its start, from its flags and the model's configuration. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_TORCH_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}

_DEFAULT_BLOCK_SIZE = 16
_DEFAULT_UTILIZATION = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine at an engine's start. `gpu_total_bytes`: of one of the engine's GPUs, 0 without any."""

    host_available_bytes: int
    num_gpus: int = 0
    gpu_total_bytes: int = 0


def kv_cache_bytes(
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    machine: Machine,
    fixed_bytes: int,
    default_on_cpu: Callable[[], int],
) -> int:
    """For engines with vLLM's flags: bytes on all GPUs together, or on the host; 0 for a pooling model.

    `config`: config.json; `fixed_bytes`: what else it takes on all its GPUs; `default_on_cpu`: what it
    allocates on a CPU if no flag says so.
    """
    if not generates(params, config):
        return 0
    requested = quantity(params.get("kv_cache_memory_bytes"))
    if requested is not None:
        return requested * max(machine.num_gpus, 1)  # the flag is per GPU
    blocks = quantity(params.get("num_gpu_blocks_override"))
    if blocks is not None and (size := block_bytes(params, decoder_config(config))):
        return blocks * size
    if machine.num_gpus:
        share = _fraction(params.get("gpu_memory_utilization"))
        return max(int(machine.gpu_total_bytes * share) * machine.num_gpus - fixed_bytes, 0)
    return default_on_cpu()


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


def block_size(params: Mapping[str, Any]) -> int:
    """Tokens of one block."""
    return quantity(params.get("block_size")) or _DEFAULT_BLOCK_SIZE


def block_bytes(params: Mapping[str, Any], text: Mapping[str, Any]) -> int:
    """Keys and values of one block in all layers; 0 if the configuration lacks the sizes."""
    layers, heads = quantity(text.get("num_hidden_layers")), quantity(text.get("num_attention_heads"))
    hidden = quantity(text.get("hidden_size"))
    if not (layers and heads and hidden):
        return 0
    kv_heads = quantity(text.get("num_key_value_heads")) or heads
    head_dim = quantity(text.get("head_dim")) or hidden // heads
    value_bytes = dtype_bytes(params.get("dtype", "auto"), text) or 2
    return 2 * layers * kv_heads * head_dim * value_bytes * block_size(params)


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


def number(value: object, default: float) -> float:
    """A flag's or variable's value; the default if it is missing or no number."""
    try:
        return float(str(value))
    except ValueError:
        return default


def _fraction(value: object) -> float:
    share = number(value, _DEFAULT_UTILIZATION)
    return share if 0 < share <= 1 else _DEFAULT_UTILIZATION
