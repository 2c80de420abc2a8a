"""Where a model named in a request lies on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from instance_manager.errors import ModelNotFound

# What the hub calls a repository: "name" or "owner/name".
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_PATH_PREFIXES = ("/", "./", "../", "~")


def find_model(model_name: str, model_dirs: Sequence[Path]) -> str:
    """An absolute directory, or the name itself where it may be a hub id that the engine resolves.

    Raises ModelNotFound for a path that is no directory and for what can't be a hub id.
    """
    if not model_name.startswith(_PATH_PREFIXES):
        for root in model_dirs:
            found = _directory_below(root, model_name)
            if found is not None:
                return str(found)
    directory = Path(model_name).expanduser()
    if directory.is_dir():
        return str(directory.resolve())
    if model_name.startswith(_PATH_PREFIXES) or not _HUB_ID.fullmatch(model_name):
        raise ModelNotFound(
            f"model {model_name!r}: there is no such directory, neither by itself nor under MODEL_DIRS "
            f"({', '.join(map(str, model_dirs)) or 'none set'})",
            param="model_name",
        )
    return model_name


def _directory_below(root: Path, name: str) -> Path | None:
    """`root/name`, unless the name leads out of the root ("a/../../b")."""
    base = root.expanduser().resolve()
    candidate = base / name
    if candidate.is_dir() and ".." not in Path(name).parts and candidate != base:
        return candidate
    return None
