"""Models that lie on disk: subfolders of MODEL_DIRS, and the hub's cache. Reads names, not contents."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_WEIGHTS = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A folder with a config.json and weights."""

    name: str
    path: Path
    size_bytes: int  # of its files
    modified: float  # seconds since the epoch


def discover_models(model_dirs: Sequence[Path], hf_home: Path | None) -> list[FoundModel]:
    """All of them, the first of each name; what can't be read is passed over. Blocks for milliseconds."""
    found: dict[str, FoundModel] = {}
    for root in model_dirs:
        for model in _in_folder(root.expanduser()):
            found.setdefault(model.name, model)
    home = hf_home or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    for model in _in_hub_cache(Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()):
        found.setdefault(model.name, model)
    return list(found.values())


def _in_folder(root: Path) -> Iterator[FoundModel]:
    """`model` or `owner/model`."""
    for first in _folders(root):
        if (model := _model(first.name, first, root)) is not None:
            yield model
            continue
        for second in _folders(first):
            if (model := _model(f"{first.name}/{second.name}", second, root)) is not None:
                yield model


def _in_hub_cache(cache: Path) -> Iterator[FoundModel]:
    """`models--owner--name`, each at the commit that its main branch points to."""
    for folder in _folders(cache):
        kind, _, name = folder.name.partition("--")
        if kind != "models" or not name:
            continue
        with contextlib.suppress(OSError, UnicodeDecodeError):
            commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
            if "/" in commit or commit in ("", ".", ".."):
                continue
            if model := _model(name.replace("--", "/"), folder / "snapshots" / commit, folder):
                yield model


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []
    return [root / name for name in sorted(names)]


def _model(name: str, folder: Path, root: Path) -> FoundModel | None:
    """None where it is none, where a file is missing (a broken link), or where it leads out of `root`."""
    try:
        inside = root.resolve()
        if not folder.resolve().is_relative_to(inside):
            return None
        files = {entry.name: entry.stat() for entry in os.scandir(folder) if not entry.is_dir()}
    except OSError:
        return None
    if "config.json" not in files or not any(file.endswith(_WEIGHTS) for file in files):
        return None
    return FoundModel(
        name,
        folder,
        sum(stat.st_size for stat in files.values()),
        max(stat.st_mtime for stat in files.values()),
    )
