"""Models that lie on disk: subfolders of MODEL_DIRS, and the hub's cache. Reads names, not contents.

Only whole models are found: each shard that the others' names tell of is there, and no link leads nowhere.
In MODEL_DIRS also GGUF, adapters and diffusion pipelines, so that nobody wonders where they are; a folder
that is named there may have the layout of the hub's cache, too.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_WEIGHTS = (".safetensors", ".bin")
_NO_WEIGHTS = frozenset({"training_args.bin", "optimizer.bin", "scheduler.bin"})  # what training leaves
_OTHER_KINDS = frozenset({"adapter_config.json", "model_index.json"})  # adapters; diffusion pipelines
_SHARD = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})(\.\w+)")
_COMMIT = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A folder with a config.json and weights, or of another kind that is listed all the same."""

    name: str
    path: Path
    size_bytes: int  # of the files in it
    modified: float  # when the youngest of them was written, in seconds since the epoch


def discover_models(model_dirs: Sequence[Path], hf_home: Path | None) -> list[FoundModel]:
    """All of them, the first of each name; what can't be read is passed over. Blocks for milliseconds.

    Without `hf_home` the hub's cache is where engines, too, look for it.
    """
    found: dict[str, FoundModel] = {}
    for root in map(Path.expanduser, model_dirs):
        for model in (*_in_folder(os.path.realpath(root)), *_in_hub_cache(root)):
            found.setdefault(model.name, model)
    home = hf_home or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    for model in _in_hub_cache(Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()):
        found.setdefault(model.name, model)
    return list(found.values())


def _in_folder(root: str) -> Iterator[FoundModel]:
    """`model` or `owner/model`."""
    for first, path in _folders(root, root):
        files, below = _look(path, root)
        if (model := _model(first, path, files) or _other_kind(first, path, files)) is not None:
            yield model
            continue
        for second in below:
            name, where = f"{first}/{second}", f"{path}/{second}"
            files, _ = _look(where, root)
            if (model := _model(name, where, files) or _other_kind(name, where, files)) is not None:
                yield model


def _in_hub_cache(cache: Path) -> Iterator[FoundModel]:
    """`models--owner--name`, each at the commit that its main branch points to."""
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
        files, _ = _look(f"{path}/snapshots/{commit}", os.path.realpath(path))
        if None in files.values():
            continue  # a link whose file is gone: not whole
        if (model := _model(name.replace("--", "/"), f"{path}/snapshots/{commit}", files)) is not None:
            yield model


def _folders(path: str, root: str) -> list[tuple[str, str]]:
    """Names and paths of the folders in a folder, in order."""
    return [(name, f"{path}/{name}") for name in _look(path, root)[1]]


def _look(path: str, root: str) -> tuple[Mapping[str, os.stat_result | None], Sequence[str]]:
    """A folder's files (None: a link to nothing or out of `root`), and the names of the folders in it.

    Hidden ones, and those whose names no request could hold, are left out.
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
    """What an entry is, where it doesn't lead out of `root`."""
    try:
        if entry.is_symlink() and not os.path.realpath(entry.path).startswith(f"{root.rstrip('/')}/"):
            return None
        return entry.stat()
    except OSError:
        return None


def _model(name: str, path: str, files: Mapping[str, os.stat_result | None]) -> FoundModel | None:
    """None where it is none, or not all of one."""
    there = _there(files)
    weights = [file for file in there if file.endswith(_WEIGHTS) and file not in _NO_WEIGHTS]
    if "config.json" not in there or not weights or not _all_shards(weights):
        return None
    return _found(name, path, there)


def _other_kind(name: str, path: str, files: Mapping[str, os.stat_result | None]) -> FoundModel | None:
    """What somebody has put among the models, and only some engines run: who lists it can say why."""
    there = _there(files)
    if any(file in _OTHER_KINDS or file.endswith(".gguf") for file in there):
        return _found(name, path, there)
    return None


def _there(files: Mapping[str, os.stat_result | None]) -> dict[str, os.stat_result]:
    return {file: found for file, found in files.items() if found is not None}


def _found(name: str, path: str, there: Mapping[str, os.stat_result]) -> FoundModel:
    size_bytes = sum(found.st_size for found in there.values())
    return FoundModel(name, Path(path), size_bytes, max(found.st_mtime for found in there.values()))


def _all_shards(weights: Sequence[str]) -> bool:
    """Whether one set of weights is whole: a file by itself, or `…-00001-of-00003…` and its fellows."""
    sets: dict[tuple[str, int, str], set[int]] = {}
    for file in weights:
        shard = _SHARD.fullmatch(file)
        if shard is None:
            return True
        sets.setdefault((shard[1], int(shard[3]), shard[4]), set()).add(int(shard[2]))
    return any(numbers == set(range(1, total + 1)) for (_, total, _), numbers in sets.items())
