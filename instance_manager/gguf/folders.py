"""GGUF models by name or path: in folders of models and in the hub's cache. Lists folders, reads headers."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath

from instance_manager.gguf.models import GgufFolder, GgufModel, models_of
from instance_manager.gguf.names import (
    SUFFIX,
    is_folder_of,
    is_projector,
    may_be_model,
    plain,
    sets_of,
    split_tag,
    with_tag,
)

_COMMIT = re.compile(r"[0-9A-Za-z_-]{1,64}")
_OTHER_KINDS = ("model_index.json", "adapter_config.json")
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_NO_LABEL = "\0"  # like no model's name
_MAX_DEPTH = 2  # of folders within a repository


def model_at(path: Path) -> GgufModel | None:
    """The model that a file is of; None if it is no model's file. Its name is of no use."""
    above = list(path.parents)[: _MAX_DEPTH + 1]
    snapshot = next((folder for folder in above if _is_snapshot(folder)), None)
    folder = snapshot or path.parent
    if snapshot is None and is_folder_of(folder.name, folder.parent.name):
        folder = folder.parent
    name = str(path.relative_to(folder))
    found = folder_at(folder, folder.name, is_repository=snapshot is not None)
    models = models_of([replace(found, files=_related(name, found.files))])
    return next((model for model in models if name in model.files.files), None)


def _related(name: str, files: Mapping[str, os.stat_result]) -> dict[str, os.stat_result]:
    """What may be of the same model, of a folder of thousands; and one other model, if there is one."""
    sets = sets_of([name])
    base = plain(sets[0].base) if sets else ""
    same = {
        other for other in files if is_projector(other) or plain(PurePosixPath(other).name).startswith(base)
    }
    others = (other for other in files if other not in same and may_be_model(other))
    return {other: files[other] for other in (*same, *islice(others, 1))}


def only_model(folder: Path) -> GgufModel | None:
    """The model that a folder stands for: its default quantisation, if it has no other files to load."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        return None
    if any(name in _OTHER_KINDS or name.endswith(_OTHER_WEIGHTS) for name in names):
        return None
    label = _label_of(folder)
    return next((one for one in models_in(folder) if label in (one.name, *one.aliases)), None)


def models_in(folder: Path) -> list[GgufModel]:
    """A folder's models; of a snapshot in the hub's cache, those in the folders below it, too."""
    return models_of([folder_at(folder, _label_of(folder), is_repository=_is_snapshot(folder))])


def _label_of(folder: Path) -> str:
    return folder.parent.parent.name.rpartition("--")[2] if _is_snapshot(folder) else _NO_LABEL


def find_below(root: Path, name: str) -> GgufModel | None:
    """The model of this name in a folder of models, by the names that a scan of it gives.

    Links that lead out of `root` aren't followed.
    """
    parts = split_tag(name)[0].split("/")
    if {"", ".", ".."} & set(parts) or len(parts) > 3:
        return None
    for depth in range(min(len(parts), 2), max(len(parts) - 2, -1), -1):
        label = "/".join(parts[:depth])
        folder = folder_at(root / label, label, root=root)
        if not label:  # which may hold thousands
            folder = replace(folder, files=_files_called(parts[0], folder.files))
        if found := _named(models_of([folder]), name):
            return found
    return None


def find_in_cache(cache: Path, name: str) -> GgufModel | None:
    """The model `owner/name` or `owner/name:Q4_K_M` in the hub's cache."""
    repository, _ = split_tag(name)
    return _named(models_of(snapshots_of(cache, repository)), name)


def snapshots_of(cache: Path, repository: str) -> list[GgufFolder]:
    """A repository's snapshots that have GGUF files: the main branch's first, then from the newest on."""
    return snapshots_in(cache / f"models--{repository.replace('/', '--')}", repository)


def snapshots_in(folder: Path, repository: str) -> list[GgufFolder]:
    """The same, of a repository's folder there."""
    found = [folder_at(path, repository, root=folder, is_repository=True) for path in _snapshots(folder)]
    return [one for one in found if one.files]


def folder_at(path: Path, label: str, *, root: Path | None = None, is_repository: bool = False) -> GgufFolder:
    """GGUF files of a folder, and of folders in it with one quantisation; in a repository, of all."""
    base = None if root is None else os.path.realpath(root)
    files: dict[str, os.stat_result] = {}
    _list(path, "", files, base, label if not is_repository else None)
    return GgufFolder(label, path, files, is_repository)


def _list(
    folder: Path, below: str, files: dict[str, os.stat_result], root: str | None, label: str | None
) -> None:
    """Add files by their name below the first folder. `label`: of that; None: list all folders."""
    try:
        entries = sorted(os.scandir(folder / below), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return
    for entry in entries:
        name = f"{below}{entry.name}"
        if not _is_listed(entry.name) or (found := _stat(entry, root)) is None:
            continue
        if stat.S_ISREG(found.st_mode) and name.endswith(SUFFIX):
            files[name] = found
        elif stat.S_ISDIR(found.st_mode) and _belongs(name, label):
            _list(folder, f"{name}/", files, root, label)


def _is_listed(name: str) -> bool:
    """Not what is hidden, or no request could name."""
    return not name.startswith(".") and name.isprintable()


def _belongs(name: str, label: str | None) -> bool:
    """Whether a folder's files are listed with those of the one that it is in."""
    return name.count("/") < _MAX_DEPTH if label is None else "/" not in name and is_folder_of(name, label)


def _stat(entry: os.DirEntry[str], root: str | None) -> os.stat_result | None:
    """None for what can't be reached, or leads out of `root`."""
    try:
        is_outside = root is not None and entry.is_symlink() and not _is_inside(entry.path, root)
        return None if is_outside else entry.stat()
    except OSError:
        return None


def _is_inside(path: str, root: str) -> bool:
    return os.path.realpath(path).startswith(f"{root.rstrip('/')}/")


def _snapshots(repository: Path) -> Iterator[Path]:
    """The snapshot of the main branch, then the others, the newest first."""
    try:
        with open(repository / "refs" / "main", encoding="utf-8") as file:
            main = file.read(100).strip()
    except (OSError, ValueError):
        main = ""
    try:
        entries = [entry for entry in os.scandir(repository / "snapshots") if _COMMIT.fullmatch(entry.name)]
        entries.sort(key=lambda entry: (entry.name != main, -entry.stat().st_mtime))
    except (OSError, ValueError):
        return
    yield from (Path(entry.path) for entry in entries)


def _is_snapshot(folder: Path) -> bool:
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


def _files_called(base: str, files: Mapping[str, os.stat_result]) -> dict[str, os.stat_result]:
    """Those whose name begins like this."""
    return {name: found for name, found in files.items() if plain(name).startswith(plain(base))}


def _named(models: Sequence[GgufModel], name: str) -> GgufModel | None:
    """By name or alias; the quantisation in any case, and as in `names.with_tag`."""
    for model in models:
        if name in (model.name, *model.aliases):
            return model
    label, tag = split_tag(name)
    same = [model for model in models if split_tag(model.name)[0] == label]
    chosen = with_tag((model.files for model in same), tag) if tag else None
    return next((model for model in same if model.files is chosen), None) if chosen else None
