"""Where a requested model is on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from instance_manager.errors import ModelNotFound
from instance_manager.gguf.folders import find_below, find_in_cache, only_model
from instance_manager.gguf.names import split_tag

# Names of repositories on the hub: "name" or "owner/name", of at most 96 characters each.
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{,95}(/[A-Za-z0-9][A-Za-z0-9._-]{,95})?")
_COMMIT = re.compile(r"[0-9A-Za-z_-]{1,64}")
_PATH_PREFIXES = ("/", "./", "../", "~")


def expand_home(path: str | Path) -> Path:
    """Unlike Path.expanduser, leaves `~` as it is for a user without a home directory."""
    return Path(os.path.expanduser(path))


def find_model(model_name: str, model_dirs: Sequence[Path], cache: Path | None = None) -> str:
    """An absolute directory or GGUF file, or the name itself if it may be a hub id that the engine resolves.

    `owner/name:Q4_K_M` names a GGUF file, as the name of a folder with GGUF files alone does. `cache`: of the
    hub, where GGUF files are looked up, too. Raises ModelNotFound for a path that isn't a directory, for an
    invalid hub id, and for a name under MODEL_DIRS that is a link to somewhere else: such a folder must be
    given by its own path.
    """
    if not model_name.startswith(_PATH_PREFIXES):
        for root in model_dirs:
            found = _below(expand_home(root).resolve(), model_name)
            if found is not None:
                return str(found)
    directory = expand_home(model_name)
    if os.path.isdir(directory):  # also False for an invalid file name
        return str(_gguf_or(directory.resolve()))
    if directory.suffix == ".gguf" and os.path.isfile(directory):
        return str(
            directory.absolute()
        )  # not resolved: in the hub's cache it is a link to a file without the suffix
    repository, tag = split_tag(model_name)
    if model_name.startswith(_PATH_PREFIXES) or not _HUB_ID.fullmatch(repository):
        raise ModelNotFound(
            f"model {model_name!r}: there is no such directory, neither as a path nor under MODEL_DIRS "
            f"({', '.join(repr(str(one)) for one in model_dirs) or 'none set'})",
            param="model_name",
        )
    downloaded = None if cache is None else find_in_cache(cache, model_name)
    if downloaded is not None and (tag or only_model(downloaded.folder.path) is not None):
        return str(downloaded.path)
    return model_name


def _below(root: Path, name: str) -> Path | None:
    """In one folder of MODEL_DIRS, by a name that a scan of it may give. Raises ModelNotFound."""
    if (directory := _directory_below(root, name)) is not None:
        return _gguf_or(directory)
    snapshot = _snapshot_below(root, name)
    if snapshot is not None and only_model(snapshot) is None:
        return snapshot
    gguf = find_below(root, name) or find_in_cache(root, name)
    return snapshot if gguf is None else gguf.path


def _gguf_or(directory: Path) -> Path:
    """The GGUF file that a directory stands for, or the directory itself."""
    gguf = only_model(directory)
    return directory if gguf is None else gguf.path


def _directory_below(base: Path, name: str) -> Path | None:
    """`base/name`, unless the name escapes the base ("a/../../b"). Raises ModelNotFound."""
    candidate = base / name
    if not os.path.isdir(candidate) or ".." in Path(name).parts or candidate == base:
        return None
    try:
        inside = list(candidate.iterdir())
    except OSError as error:
        raise ModelNotFound(
            f"model {name!r}: {str(candidate)!r} can't be read: {error.strerror or error}", param="model_name"
        ) from None
    for path in (candidate, *inside):
        if not path.resolve().is_relative_to(base):
            raise ModelNotFound(
                f"model {name!r}: {str(path)!r} is a link that leads out of {str(base)!r}, to "
                f"{str(path.resolve())!r}; give the path of the folder with the files, or add the "
                "folder that holds it to MODEL_DIRS",
                param="model_name",
            )
    return candidate


def _snapshot_below(root: Path, name: str) -> Path | None:
    """The main branch of `name`, if `root` has the layout of the hub's cache."""
    if not _HUB_ID.fullmatch(name):
        return None
    repository = root / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None
