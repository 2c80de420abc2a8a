"""Finds models on disk: in MODEL_DIRS, and in the hub's cache. Reads names, and config.json.

Only complete models are found: all shards are there, and no link is broken. MODEL_DIRS may also contain
adapters and diffusion pipelines, which are listed so that users don't miss them, and folders with the
layout of the hub's cache. Folders that look like a model but aren't complete get a remark. Knows nothing of
GGUF files: which models they are, a function says that is handed in.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.folder_listing import Files, list_folder
from configs.remarks import Remark

_WEIGHTS = (".safetensors", ".bin")
_NOT_WEIGHTS = frozenset({"training_args.bin", "optimizer.bin", "scheduler.bin"})  # left by training
_OTHER_KINDS = frozenset({"adapter_config.json", "model_index.json"})  # adapters; diffusion pipelines
_SHARD = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})(\.\w+)")
_COMMIT = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A folder with a config.json and weights, or of another kind that is listed as well."""

    name: str
    path: Path
    size_bytes: int  # of the files in it
    modified: float  # of the newest of them, in seconds since the epoch
    aliases: tuple[str, ...] = ()
    description: Mapping[str, Any] | None = None  # what its files say of it
    problem: str | None = None  # why no engine can load it


@dataclass(frozen=True, slots=True)
class Place:
    """A folder where GGUF files may be, or a repository in the hub's cache."""

    label: str  # its models' name; empty: they are named by their own files
    path: Path
    root: Path  # from which links may not lead out


FindGguf = Callable[[Sequence[Place]], Sequence[FoundModel]]


@dataclass(frozen=True, slots=True)
class Discovery:
    """All models, the first of each name, and remarks on skipped folders."""

    models: list[FoundModel]
    remarks: list[Remark]


def scan_models(
    model_dirs: Sequence[Path], hub_cache: Path, find_gguf: FindGguf = lambda places: ()
) -> Discovery:
    """Blocks for milliseconds. `hub_cache`: where engines store downloads."""
    found: dict[str, FoundModel] = {}
    taken: dict[str, FoundModel] = {}  # names and aliases
    remarks: list[Remark] = []
    for root in model_dirs:
        walk = _Walk(os.path.realpath(os.path.expanduser(root)))
        models = [*walk.models(), *_in_hub_cache(Path(walk.root))]
        models += find_gguf([*walk.places, *_repositories(Path(walk.root))])
        remarks += walk.remarks
        if not models and not walk.remarks:
            remarks.append(Remark(f"MODEL_DIRS: {walk.root}: contains no models"))
        for model in _added(models, found, taken):
            first = taken[model.name]
            remarks.append(Remark(f"MODEL_DIRS: {model.path}: {model.name} is already {first.path}"))
        remarks += [Remark(f"MODEL_DIRS: {one.path}: {one.problem}") for one in models if one.problem]
    _added([*_in_hub_cache(hub_cache), *find_gguf([*_repositories(hub_cache)])], found, taken)
    return Discovery(list(found.values()), remarks)


def _added(
    models: Sequence[FoundModel], found: dict[str, FoundModel], taken: dict[str, FoundModel]
) -> list[FoundModel]:
    """Add models to those found; returns those whose name is taken. A name wins over an alias."""
    others = [model for model in models if taken.setdefault(model.name, model) is not model]
    for model in models:
        if taken[model.name] is model:
            aliases = tuple(name for name in model.aliases if taken.setdefault(name, model) is model)
            found[model.name] = replace(model, aliases=aliases)
    return others


def files_at(path: Path) -> FoundModel | None:
    """The model at a path; None if there is none, or none that is complete."""
    where = os.path.realpath(path)
    try:
        found = os.stat(where)
    except OSError:
        return None
    if stat.S_ISREG(found.st_mode):
        return FoundModel(path.name, path, found.st_size, found.st_mtime)
    files, _ = list_folder(where, "/")
    return _model(path.name, where, files) or _other_kind(path.name, where, files)


@dataclass(slots=True)
class _Walk:
    """One folder of MODEL_DIRS, following links; collects remarks on skipped folders."""

    root: str
    remarks: list[Remark] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)  # visited

    def models(self) -> Iterator[FoundModel]:
        """`model` or `owner/model`."""
        if (problem := _unreadable(self.root)) is not None:
            self._note(self.root, problem, is_mistake=True)
            return
        files, folders = self._visit("")
        self._check_root(files, folders)
        self._note_links(self.root, files)
        for first in folders:
            if first.startswith("models--"):
                continue
            files, below = self._visit(first)
            if (model := self._model(first, files)) is not None:
                yield model
                continue
            if not _looks_like_a_model(files):
                self._note_links(f"{self.root}/{first}", files)
            for second in below:
                files, _ = self._visit(f"{first}/{second}")
                if (model := self._model(f"{first}/{second}", files)) is not None:
                    yield model

    def _visit(self, name: str) -> tuple[Files, Sequence[str]]:
        path = f"{self.root}/{name}" if name else self.root
        self.places.append(Place(name, Path(path), Path(self.root)))
        return list_folder(path, self.root)

    def _model(self, name: str, files: Files) -> FoundModel | None:
        path = f"{self.root}/{name}"
        model = _model(name, path, files) or _other_kind(name, path, files)
        if model is None and (problem := _unreadable(path)) is not None:
            self._note(path, problem)
        elif model is None and _looks_like_a_model(files):
            self._note(path, f"looks like a model, but {_problem_of_incomplete(path, files, self.root)}")
        elif model is not None and "config.json" in files and (problem := config_problem(Path(path))):
            self._note(path, problem, is_mistake=True)
        return model

    def _check_root(self, files: Files, folders: Sequence[str]) -> None:
        if _looks_like_a_model(files):
            what = "is a model itself" if "config.json" in files else "contains a file of a model"
            self._note(self.root, f"{what}; MODEL_DIRS needs folders whose subfolders are models", True)

    def _note_links(self, path: str, files: Files) -> None:
        """Links to folders that aren't followed."""
        for name, found in files.items():
            link = f"{path}/{name}"
            is_model = name.endswith(".gguf")
            if found is None and (os.path.isdir(link) or (is_model and os.path.exists(link))):
                self._note(link, f"{_escapes(link, self.root)}, so it isn't followed; {_ADVICE}")
            elif found is None and (path == self.root or is_model):
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


def _looks_like_a_model(files: Files) -> bool:
    return any(_is_weights(name) or name == "config.json" for name in files)


def _is_weights(name: str) -> bool:
    return name.endswith((*_WEIGHTS, ".safetensors.index.json")) and name not in _NOT_WEIGHTS


def _problem_of_incomplete(path: str, files: Files, root: str) -> str:
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
    for name, path in _repository_folders(root):
        try:
            with open(f"{path}/refs/main", encoding="utf-8") as ref:
                commit = ref.read(100).strip()
        except (OSError, UnicodeDecodeError):
            continue
        if not _COMMIT.fullmatch(commit):
            continue
        files, _ = list_folder(f"{path}/snapshots/{commit}", os.path.realpath(path))
        if None in files.values():
            continue  # a broken link: not complete
        if (model := _model(name, f"{path}/snapshots/{commit}", files)) is not None:
            yield model


def _repositories(cache: Path) -> list[Place]:
    root = os.path.realpath(cache)
    return [Place(name, Path(path), Path(path)) for name, path in _repository_folders(root)]


def _repository_folders(root: str) -> list[tuple[str, str]]:
    """Names of repositories, and their folders `models--owner--name` in the hub's cache, in order."""
    found = [(name.partition("--"), f"{root}/{name}") for name in list_folder(root, root)[1]]
    return [(name.replace("--", "/"), path) for (kind, _, name), path in found if kind == "models" and name]


def _model(name: str, path: str, files: Files) -> FoundModel | None:
    """None if it isn't a model, or not a complete one."""
    present = _present(files)
    weights = [file for file in present if file.endswith(_WEIGHTS) and file not in _NOT_WEIGHTS]
    if "config.json" not in present or not weights or not _all_shards(weights):
        return None
    return _found(name, path, present)


def _other_kind(name: str, path: str, files: Mapping[str, os.stat_result | None]) -> FoundModel | None:
    """Other kinds of models, which only some engines run; the caller can explain that."""
    present = _present(files)
    if any(file in _OTHER_KINDS for file in present):
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
