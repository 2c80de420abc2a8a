"""The models that GGUF files make up: their names, files, and what is wrong with them.

Names are `label:QUANTISATION`; the label alone names the default choice. Reads the beginning of each file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instance_manager.gguf.errors import GgufError
from instance_manager.gguf.headers import header_at
from instance_manager.gguf.names import (
    GgufSet,
    default_of,
    is_projector,
    main_base,
    missing_parts,
    plain,
    projector_for,
    sets_of,
)


@dataclass(frozen=True, slots=True)
class GgufFolder:
    """The GGUF files of a folder, or of one snapshot of a repository."""

    label: str  # what its models are called; empty: each by its own file's name
    path: Path
    files: Mapping[str, os.stat_result]  # by name, which may have folders
    is_repository: bool = False


@dataclass(frozen=True, slots=True)
class GgufModel:
    """One model."""

    name: str
    aliases: tuple[str, ...]
    folder: GgufFolder
    files: GgufSet
    projector_name: str | None = None  # below the folder: what turns images or sound into its embeddings

    @property
    def path(self) -> Path:
        """Of the file that an engine is given."""
        return self.folder.path / self.files.files[0]

    @property
    def paths(self) -> list[Path]:
        """Of all its parts."""
        return [self.folder.path / name for name in self.files.files]

    @property
    def projector(self) -> Path | None:
        return None if self.projector_name is None else self.folder.path / self.projector_name

    @property
    def weights_bytes(self) -> int:
        """Of its own files."""
        return sum(self.folder.files[name].st_size for name in self.files.files)

    @property
    def size_bytes(self) -> int:
        """Of its files, the projector's included."""
        return sum(found.st_size for found in self._stats())

    @property
    def modified(self) -> float:
        """Of the newest of them, in seconds since the epoch."""
        return max(found.st_mtime for found in self._stats())

    @property
    def problem(self) -> str | None:
        """Why no engine can load it; None where its names and its beginning show no reason."""
        return problem_at(self.path)

    def _stats(self) -> list[os.stat_result]:
        return [
            self.folder.files[name] for name in (*self.files.files, *filter(None, (self.projector_name,)))
        ]


def problem_at(path: Path) -> str | None:
    """Why no engine can load the model of the file `path`; None where no reason is seen. Lists no folder."""
    missing, num_parts = missing_parts(path.name, lambda name: path.with_name(name).is_file())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"it lacks {missing[0]}{more} of its {num_parts} parts: its download isn't finished"
    header = header_at(path)
    if isinstance(header, GgufError):
        return f"{path.name} {header}"
    return None if header.kind == "model" else f"{path.name} isn't a model's file"


def models_of(folders: Sequence[GgufFolder]) -> list[GgufModel]:
    """The models of folders with one label, under unique names: of a folder, or a repository's snapshots.

    Of several with one name the first counts, a whole one before one that lacks parts.
    """
    found = [one for folder in folders for one in _sets(folder)]
    found.sort(key=lambda one: bool(one.files.missing))
    label, is_repository = (folders[0].label, folders[0].is_repository) if folders else ("", False)
    main = main_base([one.files for one in found], label, is_repository=is_repository) if label else None
    by_base: dict[str, list[GgufModel]] = {}
    for one in found:
        by_base.setdefault(plain(one.files.base), []).append(one)
    models: dict[str, GgufModel] = {}
    for base, same in by_base.items():
        called = label if main is not None and plain(main) == base else _joined(label, same[0].files.base)
        for model in _named(called, same) if called else ():
            models.setdefault(model.name, model)
    return list(models.values())


def _sets(folder: GgufFolder) -> Iterator[GgufModel]:
    """A folder's models, without names."""
    sets = [one for one in sets_of(folder.files) if _is_model(folder.path / one.files[0])]
    projectors = [name for name in folder.files if is_projector(name)]
    for one in sets:
        yield GgufModel("", (), folder, one, projector_for(one, projectors, sets) if projectors else None)


def _named(label: str, same: Sequence[GgufModel]) -> Iterator[GgufModel]:
    """One base's quantisations."""
    default = default_of(one.files for one in same)
    has_plain_name = any(one.files.quantisation is None for one in same)
    for one in same:
        tag = one.files.quantisation
        is_default = one.files is default and not has_plain_name
        name = label if tag is None else f"{label}:{tag}"
        yield replace(one, name=name, aliases=(label,) if is_default else ())


def _joined(label: str, base: str) -> str:
    return "/".join(filter(None, (label, base.strip())))


def _is_model(path: Path) -> bool:
    """Whether the file is a model's; one that can't be read may be."""
    header = header_at(path)
    return isinstance(header, GgufError) or header.kind == "model"
