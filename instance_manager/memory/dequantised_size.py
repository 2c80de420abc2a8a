"""How much memory quantised weights take in an engine that dequantises them as it loads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instance_manager.memory.checkpoint_size import ModelLoad, weights_size
from instance_manager.memory.kv_cache_size import dtype_bytes

_KEYS = ("quantization_config", "compression_config")
_DEFAULT_BYTES = 2  # of a weight
_DEFAULT_BITS = 4
_WHOLE = {"I8": 1.0, "F8_E4M3": 1.0, "F8_E5M2": 1.0}  # values per byte
_GGUF_TYPE = re.compile(r"(?:^|[-._])(?:I?Q(\d)(?:_\w+)?|(BF16|F16|F32))\.gguf$", re.IGNORECASE)
_GGUF_OVERHEAD_BITS = 0.5  # of scales, per weight


def dequantised(load: ModelLoad) -> ModelLoad:
    """`load` with the bytes that its weights take once they are dequantised."""
    float_bytes = dtype_bytes(load.params.get("dtype", "auto"), load.config) or _DEFAULT_BYTES
    if load.path.suffix == ".gguf":
        values = load.weights_bytes * 8 / _gguf_bits(load.path.name)
        return replace(load, weights_bytes=int(values * float_bytes))
    settings = next((load.config[key] for key in _KEYS if isinstance(load.config.get(key), Mapping)), None)
    if settings is None:
        return load
    values_per_byte = {**_WHOLE, "I32": 8 / _bits(settings), "U8": 2.0}
    size = weights_size(load.path, float_bytes, values_per_byte)
    return load if size is None else replace(load, weights_bytes=size)


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
