"""Why the embedded engine can't read a checkpoint's quantised weights, in its words.

A copy of what engine/checkpoint/quantisation.py knows: a process boundary separates the two, and a test
compares them. Settings that can't be read are the engine's to report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

_Settings = Mapping[str, Any]
_QUANTISERS = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
_MLX = (
    "it has weights quantised for MLX, which the embedded engine can't use: run them with mlx-lm "
    "(`engine: command`)."
)


def quantisation_problem(path: Path, names: Collection[str], raw: Mapping[str, Any]) -> str | None:
    """`names`: of the directory's files. `raw`: config.json as overridden. None if no problem is known."""
    for key in ("quantization_config", "compression_config", "quantization"):
        if settings := raw.get(key):
            is_object = isinstance(settings, Mapping)
            if key == "quantization" and not (is_object and settings.get("quant_method")):
                return _MLX
            return _problem(_method(settings), settings) if is_object else _refused("quant_method 'unknown'")
    for name, method in _QUANTISERS.items():
        if name in names:
            return _problem(method, _read(path / name))
    return None


def _problem(method: str, settings: _Settings) -> str | None:
    check = _METHODS.get(method)
    if check is None:
        return _refused(f"quant_method {method!r}")
    try:
        problem = check(settings)
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    return None if problem is None else _refused(f"quant_method {method!r} with {problem}")


def _method(settings: _Settings) -> str:
    if named := settings.get("quant_method"):
        return str(named)
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return "compressed-tensors" if "config_groups" in settings else "unknown"


def _refused(what: str) -> str:
    return (
        f"it has quantised weights ({what}), which the embedded engine can't compute with: vLLM may run it "
        "(`engine: vllm`)."
    )


def _read(path: Path) -> _Settings:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _fp8(settings: _Settings) -> str | None:
    block = settings.get("weight_block_size")
    is_known = block is None or (len(block) == 2 and all(int(size) > 0 for size in block))
    return None if is_known else f"weight_block_size {block!r}"


def _modelopt(settings: _Settings) -> str | None:
    algorithm = str(settings.get("quantization", settings).get("quant_algo")).upper()
    is_known = algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO")
    return None if is_known else f"quant_algo {algorithm!r}"


def _gptq(settings: _Settings) -> str | None:
    stored = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    stored = "marlin" if settings.get("is_marlin_format") else stored
    if stored not in ("gptq", "gptq_v2"):
        return f"checkpoint_format {stored!r}"
    bits = int(settings["bits"])
    return None if bits in (2, 3, 4, 8) else f"{bits} bits"


def _awq(settings: _Settings) -> str | None:
    version = str(settings.get("version", "gemm")).lower()
    if version != "gemm":
        return f"version {version!r}"
    bits = int(settings.get("bits", settings.get("w_bit", 4)))
    return None if bits == 4 else f"{bits} bits"


def _compressed_tensors(settings: _Settings) -> str | None:
    sparsity = settings.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        return f"sparsity {sparsity['format']!r}"
    if settings.get("transform_config"):
        return "transform_config"
    for group in settings["config_groups"].values():
        stored = group.get("format") or settings.get("format") or "naive-quantized"
        if stored not in ("naive-quantized", "float-quantized", "int-quantized", "pack-quantized"):
            return f"format {stored!r}"
        weights = group.get("weights")
        if weights is not None and not 1 <= int(weights["num_bits"]) <= 8:
            return f"{weights['num_bits']} bits"
    return None


def _any(settings: _Settings) -> str | None:
    return None


_METHODS: Mapping[str, Callable[[_Settings], str | None]] = {
    "awq": _awq,
    "bitsandbytes": _any,
    "compressed-tensors": _compressed_tensors,
    "fbgemm_fp8": _any,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "mxfp4": _any,
}
