"""How much memory quantised weights take in an engine that dequantises most of them as it loads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from instance_manager.memory.checkpoint_size import ModelLoad, weights_size
from instance_manager.memory.kv_cache_size import dtype_bytes

_KEYS = ("quantization_config", "compression_config")
_DEFAULT_BYTES = 2  # of a weight
_DEFAULT_BITS = 4
_WHOLE = {"I8": 1.0, "F8_E4M3": 1.0, "F8_E5M2": 1.0}  # values per byte
_GGUF_TYPE = re.compile(r"(?:^|[-._])(?:I?Q(\d)(?:_\w+)?|(BF16|F16|F32))\.gguf$", re.IGNORECASE)
_GGUF_OVERHEAD_BITS = 0.5  # of scales, per weight


def dequantised(load: ModelLoad, *, keeps_8_bits: bool = False) -> ModelLoad:
    """`load` with the bytes that its weights take once they are loaded.

    `keeps_8_bits`: those that are products' own type stay as they are stored, as the engine has it on a GPU.
    """
    float_bytes = dtype_bytes(load.params.get("dtype", "auto"), load.config) or _DEFAULT_BYTES
    if load.num_values is not None:
        return replace(load, weights_bytes=load.num_values * float_bytes)
    if (name := _gguf_name(load.path)) is not None:
        values = load.weights_bytes * 8 / _gguf_bits(name)
        return replace(load, weights_bytes=int(values * float_bytes))
    settings = next((load.config[key] for key in _KEYS if isinstance(load.config.get(key), Mapping)), None)
    if settings is None:
        return load
    stays = 1 / float_bytes if keeps_8_bits and _stays(settings) else 1.0
    values_per_byte = {**_WHOLE, "I8": stays, "F8_E4M3": stays, "I32": 8 / _bits(settings), "U8": 2.0}
    size = weights_size(load.path, float_bytes, values_per_byte)
    return load if size is None else replace(load, weights_bytes=size)


def _stays(settings: Mapping[str, Any]) -> bool:
    """Whether activations are quantised like the weights, by a scale for each row or for all."""
    method = settings.get("quant_method")
    if method in ("fp8", "fbgemm_fp8", "modelopt"):
        return settings.get("weight_block_size") is None
    groups = settings.get("config_groups")
    found = list(groups.values()) if isinstance(groups, Mapping) else []
    return bool(found) and all(isinstance(group, Mapping) and _is_8_by_8(group) for group in found)


def _is_8_by_8(group: Mapping[str, Any]) -> bool:
    weights, activations = group.get("weights") or {}, group.get("input_activations") or {}
    is_whole = weights.get("strategy") in ("channel", "tensor")
    return is_whole and weights.get("num_bits") == activations.get("num_bits") == 8


def _gguf_name(path: Path) -> str | None:
    """The file's, which may be the only one of a folder."""
    if path.suffix == ".gguf":
        return path.name
    return None if (path / "config.json").exists() else next((one.name for one in path.glob("*.gguf")), None)


def _bits(settings: Mapping[str, Any]) -> int:
    """Of packed weights; where layers differ, the fewest."""
    groups = settings.get("config_groups")
    found = [settings.get("bits"), settings.get("w_bit")]
    if isinstance(groups, Mapping):
        found += [
            (group.get("weights") or {}).get("num_bits")
            for group in groups.values()
            if isinstance(group, Mapping)
        ]
    return min((bits for bits in found if isinstance(bits, int) and bits > 0), default=_DEFAULT_BITS)


def _gguf_bits(name: str) -> float:
    """Bits per weight, by the type in the file's name."""
    match = _GGUF_TYPE.search(name)
    if match is None:
        return _DEFAULT_BITS + _GGUF_OVERHEAD_BITS
    if match[2]:
        return 32 if match[2].upper() == "F32" else 16
    return int(match[1]) + _GGUF_OVERHEAD_BITS
