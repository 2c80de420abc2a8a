"""GGUF models on disk: where configs/discovery.py looks, and what the manager's reader finds there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from configs.discovery import FoundModel, Place
from instance_manager.gguf.description import describe
from instance_manager.gguf.folders import folder_at, model_at, only_model, snapshots_in
from instance_manager.gguf.headers import read_beginnings
from instance_manager.gguf.models import GgufFolder, GgufModel, models_of
from instance_manager.gguf.names import may_be_model


def find_gguf(places: Sequence[Place]) -> list[FoundModel]:
    """The models in these places; a file that two of them list is the first one's."""
    listed = [_folders(place) for place in places]
    read_beginnings(
        folder.path / name
        for folders in listed
        for folder in folders
        for name in folder.files
        if may_be_model(name)
    )
    found: dict[Path, GgufModel] = {}
    for folders in listed:
        for model in models_of(folders):
            found.setdefault(model.path, model)
    return [found_model(model) for model in found.values()]


def gguf_at(path: Path) -> FoundModel | None:
    """The model of a file, or the one that a folder with GGUF files alone stands for."""
    model = model_at(path) if path.suffix == ".gguf" and path.is_file() else only_model(path)
    return None if model is None else found_model(model)


def found_model(model: GgufModel) -> FoundModel:
    return FoundModel(
        model.name,
        model.path,
        model.size_bytes,
        model.modified,
        model.aliases,
        describe(model),
        model.problem,
    )


def _folders(place: Place) -> list[GgufFolder]:
    if place.path.name.startswith("models--"):
        return snapshots_in(place.path, place.label)
    found = folder_at(place.path, place.label, root=place.root)
    return [found] if found.files else []
