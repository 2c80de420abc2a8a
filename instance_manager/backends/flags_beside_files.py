"""Flags that don't fit the model, or the files they name: found before a start, in the engine's words.

A copy of the checks of engine/models/flag_limits.py and engine/checkpoint/adapter_config.py that need no more
than JSON: a process boundary separates the two, and a test compares them. The engine reports the rest within
a second of its start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from instance_manager.backends.checkpoint_problem import (
    GENERATING,
    has_no_language_head,
    pools_by_flags_or_files,
    with_overrides,
)
from instance_manager.backends.params import adapters_of, takes_adapters
from instance_manager.memory.kv_cache_size import quantity

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = (".bin", ".pt", ".pth")
_SHOWN = 5
_DEFAULT_RANK = 16
_CHECKED = ("max_model_len", "runner", "tensor_parallel_size", "tp")


def problem_of_flags(model: Path | None, params: Mapping[str, Any], folder: Path) -> str | None:
    """None if no problem is known. `model`: its directory, if it is here; `folder`: the engine's own.

    `params`: merged flags, with underscores. Blocks for a moment.
    """
    if not takes_adapters(params) and all(params.get(name) is None for name in _CHECKED):
        return None
    raw: Mapping[str, Any] = {}
    if model is not None and params.get("load_format") == "gguf":
        model = None  # a config.json beside the GGUF file isn't the model's
    if model is not None:
        raw = with_overrides(_read(model / "config.json"), params.get("hf_overrides"))
    problem = None if model is None else _against_model(model, raw, params)
    return problem or next(_modules(params, folder), None)


def files_read(model: Path | None, params: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """On what the answer of `problem_of_flags` depends; some may be missing."""
    if model is not None:
        yield from (model / "config.json", model / "modules.json")
    for _, path in adapters_of(params):
        if isinstance(path, str) and path:
            yield from (folder / path, folder / path / _CONFIG)


def _against_model(model: Path, raw: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
    named = raw.get("architectures")
    name = named[0] if isinstance(named, list) and len(named) == 1 else None
    if not isinstance(name, str):
        return None
    if params.get("runner") == "generate" and has_no_language_head(name):
        return f"{name} generates no text: it needs --runner pooling."
    pools = pools_by_flags_or_files(model, name, params)
    size = quantity(params.get("tensor_parallel_size", params.get("tp"))) or 1
    if pools and size > 1:
        return (
            f"--tensor-parallel-size {size} is for models that generate text: the pooling runner uses one "
            "device. Leave the flag out."
        )
    if takes_adapters(params) and (problem := _against_adapters(name, params, pools=pools)) is not None:
        return problem
    return _length(raw, params) if name in GENERATING and not pools else None


def _against_adapters(name: str, params: Mapping[str, Any], *, pools: bool) -> str | None:
    if pools:
        return (
            "--enable-lora is for models that generate text: the pooling runner takes no LoRA adapters. "
            "Merge the adapter into the model, or leave the flag out."
        )
    if name not in GENERATING or params.get("model_impl") == "transformers":
        return (
            f"--enable-lora: transformers' own code computes {name}, and takes no LoRA adapters: merge the "
            "adapter into the model, or run it on vLLM (`engine: vllm`)."
        )
    return None


def _length(raw: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
    """For a model whose configuration has the limit in one number: scaling of its RoPE may extend that."""
    wanted, limit = quantity(params.get("max_model_len")), raw.get("max_position_embeddings")
    if wanted is None or type(limit) is not int or _is_scaled(raw) or wanted <= limit:
        return None
    return f"--max-model-len {wanted} exceeds the model's limit: max_position_embeddings is {limit}."


def _is_scaled(raw: Mapping[str, Any]) -> bool:
    """Whether any of its RoPEs is: layers of several types may have one each."""
    given = [found for key in ("rope_scaling", "rope_parameters") if isinstance(found := raw.get(key), dict)]
    ropes = [*given, *(inner for one in given for inner in one.values() if isinstance(inner, dict))]
    kinds = (rope.get("rope_type") or rope.get("type") or "default" for rope in ropes)
    return any(kind != "default" for kind in kinds)


def _modules(params: Mapping[str, Any], folder: Path) -> Iterator[str]:
    served = params.get("served_model_name") or ()
    taken = {served} if isinstance(served, str) else set(served)
    loaded: set[str] = set()
    for name, path in adapters_of(params):
        if isinstance(path, str) and path:
            problem = _clash(name, taken, loaded) or _adapter(name, path, folder, params)
            if problem is not None:
                yield f"--lora-modules {name}: {problem}"
        loaded.add(name)


def _clash(name: str, taken: set[str], loaded: set[str]) -> str | None:
    if name in taken:
        return f"The lora adapter name {name!r} is a name of the served model."
    if name in loaded:
        return (
            f"The lora adapter {name!r} has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True."
        )
    return None


def _adapter(name: str, path: str, folder: Path, params: Mapping[str, Any]) -> str | None:
    directory, shown = folder / path, Path(path)
    try:
        if directory.is_file():
            return f"{str(shown)!r} is a file; the adapter {name!r} is the directory with its {_CONFIG}."
        if not directory.is_dir():
            return f"There is no directory {str(shown)!r} with the adapter {name!r}."
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        return f"The adapter {name!r} can't be read: {error}"
    if _CONFIG not in names:
        return f"{shown} has no {_CONFIG}: it is not a LoRA adapter."
    return _rank(directory, shown, params) or _weightless(shown, names)


def _rank(directory: Path, shown: Path, params: Mapping[str, Any]) -> str | None:
    raw = _read(directory / _CONFIG)
    pattern = raw.get("rank_pattern")
    ranks = [raw.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    if raw.get("peft_type") != "LORA" or not all(type(rank) is int for rank in ranks):
        return None  # the engine says what is wrong
    highest, most = max(ranks), quantity(params.get("max_lora_rank")) or _DEFAULT_RANK
    if highest <= most:
        return None
    return f"{shown}: its rank is {highest}, and --max-lora-rank is {most}: raise it."


def _weightless(shown: Path, names: list[str]) -> str | None:
    if _WEIGHTS in names:
        return None
    pickled = [name for name in names if name.endswith(_PICKLED)]
    more = f" and {len(pickled) - _SHOWN} more" if len(pickled) > _SHOWN else ""
    found = f"pickled weights ({', '.join(pickled[:_SHOWN])}{more}), which may run code when they are read"
    return f"{shown} has no {_WEIGHTS}{f', but {found}' if pickled else ''}: save it in this format."


def _read(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
