"""Which engine kind runs a model whose engine nobody named, by what its files are, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from instance_manager.backends.model_paths import find_model
from instance_manager.errors import ManagerError
from instance_manager.memory.checkpoint_size import locate


class FileFormat(StrEnum):
    """What a model's weights are stored as."""

    GGUF = "GGUF"
    SAFETENSORS = "safetensors"
    UNKNOWN = "unknown"  # there are none here, or others


@dataclass(frozen=True, slots=True)
class EngineChoice:
    engine: str  # the name of a back end
    reason: str  # in one line, for people


@dataclass(frozen=True, slots=True)
class ChoiceFacts:
    """What a kind decides by whether it is the one for a model."""

    file_format: FileFormat
    options: Mapping[str, Any]  # settings about one engine kind, by field
    has_gpu: Callable[[], bool]  # blocks for milliseconds


def format_of(model: str, model_dirs: Sequence[Path], environ: Mapping[str, str]) -> FileFormat:
    """Of a path, a name under `model_dirs` or a hub id; of one that isn't here by its name."""
    name = model if Path(model).exists() else model.partition(":")[0]  # owner/name:Q4_K_M
    try:
        path = locate(find_model(name, model_dirs), environ)
    except ManagerError:
        path = None
    if path is None:
        looks_like_gguf = ":" in model or "gguf" in model.lower()
        return FileFormat.GGUF if looks_like_gguf else FileFormat.UNKNOWN
    return _format_at(path)


def _format_at(path: Path) -> FileFormat:
    try:
        names = [path.name] if path.is_file() else [one.name for one in path.iterdir()]
    except OSError:
        return FileFormat.UNKNOWN
    for suffix, found in ((".safetensors", FileFormat.SAFETENSORS), (".gguf", FileFormat.GGUF)):
        if any(name.lower().endswith(suffix) for name in names):
            return found
    return FileFormat.UNKNOWN
