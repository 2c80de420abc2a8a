"""Reads a checkpoint's JSON files as they are, without interpreting them. Knows nothing of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, UnsupportedModel

MAX_LAYERS = 4096
# What a file may say at most: far above any model, and far below what would take all memory to describe.
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), MAX_LAYERS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 1 << 16),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), 1 << 16),
    "hidden_size": 1 << 20,
}


def read_raw_config(directory: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json with --hf-overrides merged into it, object by object. Raises CheckpointError.

    The fields of a multimodal model's `text_config` are added to those around it, which may name the end
    tokens or the weights' type.
    """
    path = directory / "config.json"
    merged = _merge(read_json(path), overrides or {})
    raw = _merge(spread_text_config(merged), overrides or {})  # an override of the outer object counts, too
    for name, most in _MOST.items():
        check_most(path, name, raw.get(name), most)
    return raw


def check_most(path: Path, name: str, value: object, most: int) -> None:
    """Raises CheckpointError for a larger number."""
    if isinstance(value, int | float) and value > most:
        raise CheckpointError(f"{path}: {name} is {value}; it may be at most {most}.")


def spread_text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `text_config` first, then those around it; the architectures are always the latter's."""
    inner = raw.get("text_config")
    if not isinstance(inner, dict):
        return dict(raw)
    known = {key: value for key, value in inner.items() if value is not None and key != "architectures"}
    return {**raw, **known}


def architecture_of(directory: Path, raw: Mapping[str, Any]) -> str:
    """Raises UnsupportedModel unless there is exactly one."""
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise UnsupportedModel(
            f"{directory / 'config.json'}: architectures is {architectures!r}; it must be a list "
            "with one name."
        )
    return str(architectures[0])


def _merge(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(raw)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint. Raises CheckpointError."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}: it is not a model in Hugging Face layout."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} doesn't contain a JSON object.")
    return value
