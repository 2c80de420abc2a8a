"""Whether an adapter was made for a model, by the shapes in its file's header. Knows nothing of torch.

The model's own layers are compared when the adapter is loaded: this is the part that is known before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from engine.checkpoint.adapter_config import WEIGHTS, AdapterConfig
from engine.checkpoint.layout import enumerate_names
from engine.errors import CheckpointError, UnsupportedModel

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

_MAX_HEADER_BYTES = 100 << 20
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_READS_HIDDEN = re.compile(r"\.(?:q|k|v|qkv|gate|up|gate_up)_proj$")  # their input is the layer's


def check_shapes(directory: Path, config: AdapterConfig, *, hidden_size: int, num_layers: int) -> None:
    """Raises CheckpointError and UnsupportedModel, as loading the adapter would."""
    path = directory / WEIGHTS
    shapes = {name.removeprefix(PREFIX): shape for name, shape in _stored_shapes(path).items()}
    layers = {name.removesuffix(A): _LAYER.search(name) for name in shapes if name.endswith(A)}
    if unknown := sorted(m for m, layer in layers.items() if layer and int(layer[1]) >= num_layers):
        raise not_of_the_model(path, unknown)
    for module in sorted(layers):
        wanted = [config.rank_of(module), hidden_size]
        if _READS_HIDDEN.search(module) and layers[module] and shapes[module + A] != wanted:
            raise wrong_shape(path, module + A, shapes[module + A], wanted)


def not_of_the_model(path: Path, modules: Sequence[str]) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path} changes {enumerate_names(modules)}: of this model, linear layers of the decoder can "
        "have adapters.",
        advice=None,
    )


def wrong_shape(path: Path, tensor: str, found: Sequence[int], wanted: Sequence[int]) -> CheckpointError:
    return CheckpointError(
        f"{path}: {tensor} is {list(found)} instead of {list(wanted)}: the adapter belongs to another model."
    )


def _stored_shapes(path: Path) -> dict[str, list[int]]:
    """Empty for a file that can't be read: its reader reports why."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        return {name: list(one["shape"]) for name, one in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
