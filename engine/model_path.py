"""From a model's name to a directory that holds it: a path, the local hub cache, or a download."""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.errors import ModelNotFound

_REPOSITORY_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")


def resolve_model(model: str | os.PathLike[str]) -> Path:
    """The directory of a model given by path or by hub name ("Qwen/Qwen3-0.6B").

    Looks in the file system, then in the local hub cache, then asks the hub. Raises ModelNotFound.
    """
    path = Path(os.path.expanduser(model))  # unlike Path's own, it leaves a `~` alone that nobody has
    if path.is_dir():
        return path.resolve()
    name = os.fspath(model)
    if path.exists():
        raise ModelNotFound(f"{name} is a file; a model is a directory with config.json and *.safetensors.")
    if path.is_absolute() or name.startswith((".", "~")) or not _REPOSITORY_ID.fullmatch(name):
        raise ModelNotFound(f"There is no directory {name}.")
    return _cached(name) or _downloaded(name)


def _cached(repository: str) -> Path | None:
    # Imported only when a hub name is given: the import takes as long as loading a small model.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(repository, allow_patterns=list(_WANTED), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    complete = (directory / "config.json").exists() and any(directory.glob("*.safetensors"))
    return directory if complete else None


def _downloaded(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(_WANTED)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelNotFound(
            f"Model {repository!r} is neither a directory nor in the local hub cache, and it can't be "
            f"downloaded: {str(error).strip().splitlines()[0]}"
        ) from error
