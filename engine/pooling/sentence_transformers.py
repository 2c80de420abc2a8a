"""sentence-transformers' files beside a checkpoint: how it pools, projects and normalises, and its prompts.

modules.json lists the steps after the model; each has a folder with its own config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, UnsupportedModel
from engine.models.pooling_type import PoolingType
from engine.text.tokenizer import read_json

_MODES = {
    "cls": PoolingType.CLS,
    "lasttoken": PoolingType.LAST,
    "mean": PoolingType.MEAN,
    "pooling_mode_cls_token": PoolingType.CLS,
    "pooling_mode_lasttoken": PoolingType.LAST,
    "pooling_mode_mean_tokens": PoolingType.MEAN,
}
_DENSE_ACTIVATIONS = frozenset({"Identity", "Tanh"})


@dataclass(frozen=True, slots=True)
class DenseModule:
    """A projection of the pooled vector, with its weights in its own folder."""

    folder: str
    in_features: int
    out_features: int
    has_bias: bool
    has_tanh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceTransformer:
    modes: tuple[str, ...]  # of pooling, as named in the files
    normalizes: bool
    max_seq_length: int | None = None
    dense: tuple[DenseModule, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)

    def pooling_type(self) -> PoolingType:
        """Raises UnsupportedModel for a mode, or a combination of modes, that we don't implement."""
        if len(self.modes) == 1 and self.modes[0] in _MODES:
            return _MODES[self.modes[0]]
        raise UnsupportedModel(
            f"sentence-transformers pooling {' + '.join(self.modes) or '(none)'} isn't supported; cls, mean "
            "and lasttoken are. --pooler-config can name another."
        )


def read_sentence_transformer(directory: Path) -> SentenceTransformer | None:
    """None unless modules.json describes an embedding model.

    Raises CheckpointError, and UnsupportedModel for a step that we don't implement.
    """
    modules = _read_modules(directory)
    pooling = next((path for kind, path in modules if kind == "Pooling"), None)
    if pooling is None:
        return None
    for kind, _ in modules:
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout"):
            raise UnsupportedModel(f"sentence-transformers module {kind!r} isn't supported.")
    extras = read_json(directory / "config_sentence_transformers.json")
    prompts = extras.get("prompts")
    max_seq_length = read_json(directory / "sentence_bert_config.json").get("max_seq_length")
    return SentenceTransformer(
        modes=_pooling_modes(read_json(directory / pooling / "config.json")),
        normalizes=any(kind == "Normalize" for kind, _ in modules),
        max_seq_length=max_seq_length if isinstance(max_seq_length, int) else None,
        dense=tuple(_read_dense(directory, path) for kind, path in modules if kind == "Dense"),
        prompts=prompts if isinstance(prompts, dict) else {},
    )


def _read_modules(directory: Path) -> list[tuple[str, str]]:
    """(class name, folder) of each module."""
    path = directory / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error


def _pooling_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """From one flag per mode, or (newer files) one name."""
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return (named,)
    return tuple(key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)


def _read_dense(directory: Path, folder: str) -> DenseModule:
    config = read_json(directory / folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in _DENSE_ACTIVATIONS:
        raise UnsupportedModel(f"{folder}: activation {activation!r} isn't supported; Identity and Tanh are.")
    try:
        sizes = int(config["in_features"]), int(config["out_features"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / folder}/config.json has no valid sizes: {error}") from error
    return DenseModule(folder, *sizes, bool(config.get("bias", True)), activation == "Tanh")
