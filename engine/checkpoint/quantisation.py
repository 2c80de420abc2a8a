"""How a checkpoint's weights are quantised, judged by its settings alone. Knows nothing of torch.

The methods that the engine reads are in _METHODS; engine/models/quantised/formats.py has their classes, and a
test compares the two. Berth refuses the same ones before it starts an engine
(instance_manager/backends/checkpoint_problem.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.raw_config import read_json
from engine.errors import CheckpointError, ConfigError, UnsupportedModel

Settings = Mapping[str, Any]

UNPACKED_GGUF = "gguf-files.json"  # in a directory that engine/models/quantised/gguf_directory.py made
_KEYS = ("quantization_config", "compression_config", "quantization")  # of config.json
# Files of quantisers that may write nothing into config.json, and the quantisers' names.
QUANTISERS = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}


@dataclass(frozen=True, slots=True)
class Quantisation:
    method: str  # as in config.json's quant_method
    settings: Settings


def read_quantisation(directory: Path, raw: Mapping[str, Any]) -> Quantisation | None:
    """`raw` is config.json as overridden; None for weights that aren't quantised.

    Raises UnsupportedModel for a method, or a variant of it, that the engine doesn't read; CheckpointError.
    """
    found = _found(directory, raw)
    if found is None:
        return None
    check = _METHODS.get(found.method)
    if check is None:
        raise _refused(directory, f"quant_method {found.method!r}")
    try:
        problem = check(found.settings)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        missing = f"they lack {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{directory} has quantised weights (quant_method {found.method!r}), but their settings can't be "
            f"read: {missing}."
        ) from error
    if problem is not None:
        raise _refused(directory, f"quant_method {found.method!r} with {problem}")
    return found


_SAME_METHOD = {"gptq_marlin": "gptq", "awq_marlin": "awq", "modelopt_fp8": "modelopt"}  # vLLM's names


def check_quantisation_flag(named: str | None, directory: Path, raw: Mapping[str, Any]) -> None:
    """`named`: --quantization, which may only be the checkpoint's own method.

    Raises ConfigError, and what `read_quantisation` raises.
    """
    found = read_quantisation(directory, raw)
    own = "gguf" if (directory / UNPACKED_GGUF).is_file() else None if found is None else found.method
    if named is None or _SAME_METHOD.get(named, named) == own:
        return
    state = "aren't quantised, and the engine quantises none" if own is None else f"are quantised as {own!r}"
    raise ConfigError(f"--quantization {named} can't be honoured: the checkpoint's weights {state}.")


def _found(directory: Path, raw: Mapping[str, Any]) -> Quantisation | None:
    for key in _KEYS:
        if settings := raw.get(key):
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            if method is None and key == "quantization":
                raise UnsupportedModel(
                    f"{directory} has weights quantised for MLX, which the embedded engine can't use: run "
                    "them with mlx-lm (`engine: command`).",
                    advice=None,
                )
            if not isinstance(settings, dict):
                raise _refused(directory, "quant_method 'unknown'")
            return Quantisation(str(method or _unnamed(settings)), settings)
    for name, method in QUANTISERS.items():
        if (directory / name).is_file():
            return Quantisation(method, read_json(directory / name))
    return None


def _unnamed(settings: Settings) -> str:
    """The method of settings that don't name one, as older savers wrote them."""
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return "compressed-tensors" if "config_groups" in settings else "unknown"


def _refused(directory: Path, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{directory} has quantised weights ({what}), which the embedded engine can't compute with."
    )


def _fp8(settings: Settings) -> str | None:
    block = settings.get("weight_block_size")
    if block is None or (len(block) == 2 and all(int(size) > 0 for size in block)):
        return None
    return f"weight_block_size {block!r}"


def _modelopt(settings: Settings) -> str | None:
    algorithm = str(settings.get("quantization", settings).get("quant_algo")).upper()
    if algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"):
        return _fp8(settings)
    return f"quant_algo {algorithm!r}"


def _gptq(settings: Settings) -> str | None:
    stored = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if settings.get("is_marlin_format"):
        stored = "marlin"
    if stored not in ("gptq", "gptq_v2"):
        return f"checkpoint_format {stored!r}"
    bits = int(settings["bits"])
    return None if bits in (2, 3, 4, 8) else f"{bits} bits"


def _awq(settings: Settings) -> str | None:
    version = str(settings.get("version", "gemm")).lower()
    if version != "gemm":
        return f"version {version!r}"
    bits = int(settings.get("bits", settings.get("w_bit", 4)))
    return None if bits == 4 else f"{bits} bits"


def _compressed_tensors(settings: Settings) -> str | None:
    known = ("naive-quantized", "float-quantized", "int-quantized", "pack-quantized")
    sparsity = settings.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        return f"sparsity {sparsity['format']!r}"
    if settings.get("transform_config"):
        return "transform_config"
    for group in settings["config_groups"].values():
        stored = group.get("format") or settings.get("format") or "naive-quantized"
        if stored not in known:
            return f"format {stored!r}"
        weights = group.get("weights")
        if weights is not None and not 1 <= int(weights["num_bits"]) <= 8:
            return f"{weights['num_bits']} bits"
        _check_group(group)
    return None


def _check_group(group: Settings) -> None:
    """Raises ValueError for what no saver writes."""
    targets, activations = group.get("targets") or [], group.get("input_activations")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"targets is {targets!r}, not a list of names")
    for pattern in (target.removeprefix("re:") for target in targets if target.startswith("re:")):
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"the target {pattern!r} is no regular expression: {error}") from None
    if activations is not None and not isinstance(activations, dict):
        raise ValueError(f"input_activations is {activations!r}, not an object")
    weights = group.get("weights") or {}
    match weights.get("strategy"), weights.get("block_structure"), weights.get("group_size"):
        case ("block", [int(rows), int(columns)], _) if rows > 0 and columns > 0:
            pass
        case ("group", _, int(columns)) if columns > 0:
            pass
        case ("block", block, _) if block is not None:
            raise ValueError(f"block_structure is {block!r}, not two sizes")
        case ("group", _, size):
            raise ValueError(f"group_size is {size!r}, not a number of columns")


def _any(settings: Settings) -> str | None:
    return None


# For each method that the engine reads, what tells the variant that it doesn't.
_METHODS: Mapping[str, Callable[[Settings], str | None]] = {
    "awq": _awq,
    "bitsandbytes": _any,
    "compressed-tensors": _compressed_tensors,
    "fbgemm_fp8": _fp8,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "mxfp4": _any,
}
METHODS = frozenset(_METHODS)
