"""Finds models on disk: subfolders of MODEL_DIRS, and the hub's cache. Reads names, and config.json.

Only complete models are found: all shards are there, and no link is broken. MODEL_DIRS may also contain GGUF
files, adapters and diffusion pipelines, which are listed so that users don't miss them, and folders with the
layout of the hub's cache. Folders that look like a model but aren't complete get a remark.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.remarks import Remark

_WEIGHTS = (".safetensors", ".bin")
_NOT_WEIGHTS = frozenset({"training_args.bin", "optimizer.bin", "scheduler.bin"})  # left by training
_OTHER_KINDS = frozenset({"adapter_config.json", "model_index.json"})  # adapters; diffusion pipelines
_SHARD = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})(\.\w+)")
_Files = Mapping[str, os.stat_result | None]  # by name; None: a broken link, or one that isn't followed
_COMMIT = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A folder with a config.json and weights, or of another kind that is listed as well."""

    name: str
    path: Path
    size_bytes: int  # of the files in it
    modified: float  # of the newest of them, in seconds since the epoch


@dataclass(frozen=True, slots=True)
class Discovery:
    """All models, the first of each name, and remarks on skipped folders."""

    models: list[FoundModel]
    remarks: list[Remark]


def scan_models(model_dirs: Sequence[Path], hub_cache: Path) -> Discovery:
    """Blocks for milliseconds. `hub_cache`: where engines store downloads."""
    found: dict[str, FoundModel] = {}
    remarks: list[Remark] = []
    for root in model_dirs:
        walk = _Walk(os.path.realpath(os.path.expanduser(root)))
        models = [*walk.models(), *_in_hub_cache(Path(walk.root))]
        remarks += walk.remarks
        if not models and not walk.remarks:
            remarks.append(Remark(f"MODEL_DIRS: {walk.root}: contains no models"))
        for model in models:
            if (first := found.setdefault(model.name, model)) is not model:
                remarks.append(Remark(f"MODEL_DIRS: {model.path}: {model.name} is already {first.path}"))
    for model in _in_hub_cache(hub_cache):
        found.setdefault(model.name, model)
    return Discovery(list(found.values()), remarks)


def files_at(path: Path) -> FoundModel | None:
    """The model at a path; None if there is none, or none that is complete."""
    where = os.path.realpath(path)
    try:
        found = os.stat(where)
    except OSError:
        return None
    if stat.S_ISREG(found.st_mode):
        return FoundModel(path.name, path, found.st_size, found.st_mtime)
    files, _ = _list_folder(where, "/")
    return _model(path.name, where, files) or _other_kind(path.name, where, files)


@dataclass(slots=True)
class _Walk:
    """One folder of MODEL_DIRS, following links; collects remarks on skipped folders."""

    root: str
    remarks: list[Remark] = field(default_factory=list)

    def models(self) -> Iterator[FoundModel]:
        """`model` or `owner/model`."""
        if (problem := _unreadable(self.root)) is not None:
            self._note(self.root, problem, is_mistake=True)
            return
        files, folders = _list_folder(self.root, self.root)
        self._check_root(files, folders)
        self._note_links(self.root, files)
        for first in folders:
            if first.startswith("models--"):
                continue
            files, below = _list_folder(f"{self.root}/{first}", self.root)
            if (model := self._model(first, files)) is not None:
                yield model
                continue
            if not _looks_like_a_model(files):
                self._note_links(f"{self.root}/{first}", files)
            for second in below:
                files, _ = _list_folder(f"{self.root}/{first}/{second}", self.root)
                if (model := self._model(f"{first}/{second}", files)) is not None:
                    yield model

    def _model(self, name: str, files: _Files) -> FoundModel | None:
        path = f"{self.root}/{name}"
        model = _model(name, path, files) or _other_kind(name, path, files)
        if model is None and (problem := _unreadable(path)) is not None:
            self._note(path, problem)
        elif model is None and _looks_like_a_model(files):
            self._note(path, f"looks like a model, but {_problem_of_incomplete(path, files, self.root)}")
        elif model is not None and "config.json" in files and (problem := config_problem(Path(path))):
            self._note(path, problem, is_mistake=True)
        return model

    def _check_root(self, files: _Files, folders: Sequence[str]) -> None:
        if _looks_like_a_model(files):
            what = "is a model itself" if "config.json" in files else "contains a file of a model"
            advice = "MODEL_DIRS needs folders whose subfolders are models"
            if any(name.endswith(".gguf") for name in files):
                advice += "; name a GGUF file as `path:` in models.yaml"
            self._note(self.root, f"{what}; {advice}", True)

    def _note_links(self, path: str, files: _Files) -> None:
        """Links to folders that aren't followed."""
        for name, found in files.items():
            link = f"{path}/{name}"
            if found is None and os.path.isdir(link):
                self._note(link, f"{_escapes(link, self.root)}, so it isn't followed; {_ADVICE}")
            elif found is None and path == self.root:
                self._note(link, "is a broken link")

    def _note(self, path: str, problem: str, is_mistake: bool = False) -> None:
        self.remarks.append(Remark(f"MODEL_DIRS: {path}: {problem}", is_mistake))


_ADVICE = "add its target to MODEL_DIRS, or use it as `path:` in models.yaml"


def config_problem(folder: Path) -> str | None:
    """The problem with a model's config.json; None if it is well-formed."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        return "has no config.json"
    except OSError as error:
        return f"its config.json can't be read: {error.strerror or error}"
    except ValueError as error:
        return f"its config.json isn't valid JSON: {error}"
    return None if isinstance(config, dict) else "its config.json isn't a JSON object"


def _unreadable(path: str) -> str | None:
    try:
        os.scandir(path).close()
    except FileNotFoundError:
        return "there is no such folder"
    except NotADirectoryError:
        return "isn't a folder"
    except OSError as error:
        return f"can't be read: {error.strerror or error}"
    return None


def _looks_like_a_model(files: _Files) -> bool:
    return any(_is_weights(name) or name == "config.json" or name.endswith(".gguf") for name in files)


def _is_weights(name: str) -> bool:
    return name.endswith((*_WEIGHTS, ".safetensors.index.json")) and name not in _NOT_WEIGHTS


def _problem_of_incomplete(path: str, files: _Files, root: str) -> str:
    """Why a folder with a model's files isn't a complete model."""
    for name, found in files.items():
        if found is None and (name == "config.json" or name.endswith(_WEIGHTS)):
            link = f"{path}/{name}"
            why = _escapes(link, root) if os.path.exists(link) else "is a broken link"
            return f"{name} {why}"
    if "config.json" not in files:
        return "has no config.json"
    if not any(name.endswith(_WEIGHTS) and name not in _NOT_WEIGHTS for name in files):
        return "has no weights (*.safetensors, *.bin)"
    return "lacks some shards of its weights"


def _escapes(link: str, root: str) -> str:
    return f"is a link that leads out of {root}, to {os.path.realpath(link)}"


def _in_hub_cache(cache: Path) -> Iterator[FoundModel]:
    """Models in folders `models--owner--name`, each at the commit of its main branch."""
    root = os.path.realpath(cache)
    for folder, path in _folders(root, root):
        kind, _, name = folder.partition("--")
        if kind != "models" or not name:
            continue
        try:
            with open(f"{path}/refs/main", encoding="utf-8") as ref:
                commit = ref.read(100).strip()
        except (OSError, UnicodeDecodeError):
            continue
        if not _COMMIT.fullmatch(commit):
            continue
        files, _ = _list_folder(f"{path}/snapshots/{commit}", os.path.realpath(path))
        if None in files.values():
            continue  # a broken link: not complete
        if (model := _model(name.replace("--", "/"), f"{path}/snapshots/{commit}", files)) is not None:
            yield model


def _folders(path: str, root: str) -> list[tuple[str, str]]:
    """Names and paths of the folders in a folder, in order."""
    return [(name, f"{path}/{name}") for name in _list_folder(path, root)[1]]


def _list_folder(path: str, root: str) -> tuple[_Files, Sequence[str]]:
    """A folder's files (None: a link that is broken or leads out of `root`) and the names of its subfolders.

    Hidden entries, and names that no request could contain, are left out.
    """
    files: dict[str, os.stat_result | None] = {}
    folders = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.name.isprintable():
                    continue
                found = _stat_inside(entry, root)
                if found is not None and stat.S_ISDIR(found.st_mode):
                    folders.append(entry.name)
                else:
                    files[entry.name] = found
    except OSError:
        return {}, []
    return files, sorted(folders)


def _stat_inside(entry: os.DirEntry[str], root: str) -> os.stat_result | None:
    """The entry's stat, unless it leads out of `root`."""
    try:
        if entry.is_symlink() and not os.path.realpath(entry.path).startswith(f"{root.rstrip('/')}/"):
            return None
        return entry.stat()
    except OSError:
        return None


def _model(name: str, path: str, files: _Files) -> FoundModel | None:
    """None if it isn't a model, or not a complete one."""
    present = _present(files)
    weights = [file for file in present if file.endswith(_WEIGHTS) and file not in _NOT_WEIGHTS]
    if "config.json" not in present or not weights or not _all_shards(weights):
        return None
    return _found(name, path, present)


def _other_kind(name: str, path: str, files: Mapping[str, os.stat_result | None]) -> FoundModel | None:
    """Other kinds of models, which only some engines run; the caller can explain that."""
    present = _present(files)
    if any(file in _OTHER_KINDS or file.endswith(".gguf") for file in present):
        return _found(name, path, present)
    return None


def _present(files: Mapping[str, os.stat_result | None]) -> dict[str, os.stat_result]:
    return {file: found for file, found in files.items() if found is not None}


def _found(name: str, path: str, files: Mapping[str, os.stat_result]) -> FoundModel:
    size_bytes = sum(found.st_size for found in files.values())
    return FoundModel(name, Path(path), size_bytes, max(found.st_mtime for found in files.values()))


def _all_shards(weights: Sequence[str]) -> bool:
    """Whether a set of weights is complete: a single file, or all of `…-00001-of-00003…`."""
    sets: dict[tuple[str, int, str], set[int]] = {}
    for file in weights:
        shard = _SHARD.fullmatch(file)
        if shard is None:
            return True
        sets.setdefault((shard[1], int(shard[3]), shard[4]), set()).add(int(shard[2]))
    return any(numbers == set(range(1, total + 1)) for (_, total, _), numbers in sets.items())
