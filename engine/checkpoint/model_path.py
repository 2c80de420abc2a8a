"""From a model's name to its directory: a path, the local hub cache, or a download."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from engine.checkpoint.layout import weight_files
from engine.errors import CheckpointError, ModelNotFound

_REPOSITORY_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")


def resolve_model(
    model: str | os.PathLike[str], *, check: Callable[[Path], None] = lambda directory: None
) -> Path:
    """The directory of a model given by path or by hub name ("Qwen/Qwen3-0.6B"), or a GGUF file's own path.

    Looks in the file system, then in the local hub cache, then downloads from the hub: everything but the
    weights first, so that `check` can raise before they are downloaded. Raises ModelNotFound, and what
    `check` raises.
    """
    path = Path(os.path.expanduser(model))  # unlike Path's own, keeps a `~` without a home
    if path.is_dir():
        return path.resolve()
    name = os.fspath(model)
    if path.is_file() and path.suffix == ".gguf":
        return path.absolute()  # not resolved: in the hub's cache it is a link to a file without the suffix
    if path.exists():
        raise ModelNotFound(
            f"{name} is a file; a model is a directory with config.json and *.safetensors, or a .gguf file."
        )
    if path.is_absolute() or name.startswith((".", "~")) or not _REPOSITORY_ID.fullmatch(name):
        raise ModelNotFound(f"There is no directory {name}.")
    cached = _cached(name)
    if cached is not None and _is_complete(cached):
        return cached
    try:
        return _downloaded(name, check)
    except ModelNotFound:
        if cached is None:
            raise
        return cached  # what it lacks is reported later


def _cached(repository: str) -> Path | None:
    # Imported only when a hub name is given: the import takes as long as loading a small model.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(repository, allow_patterns=list(_WANTED), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return directory


def _is_complete(directory: Path) -> bool:
    try:
        return (directory / "config.json").exists() and bool(weight_files(directory))
    except CheckpointError:
        return False


def _downloaded(repository: str, check: Callable[[Path], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        check(Path(snapshot_download(repository, allow_patterns=[*_WANTED[1:]])))
        return Path(snapshot_download(repository, allow_patterns=[*_WANTED]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelNotFound(
            f"Model {repository!r} is neither a directory nor in the local hub cache, and it can't be "
            f"downloaded: {str(error).strip().splitlines()[0]}"
        ) from error
