"""Where a model named in a request lies on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from instance_manager.errors import ModelNotFound

# What the hub calls a repository: "name" or "owner/name".
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_COMMIT = re.compile(r"[0-9A-Za-z_-]{1,64}")
_PATH_PREFIXES = ("/", "./", "../", "~")


def find_model(model_name: str, model_dirs: Sequence[Path]) -> str:
    """An absolute directory, or the name itself where it may be a hub id that the engine resolves.

    A file of GGUF is a model for some engines. Raises ModelNotFound for a path that is no directory, for what
    can't be a hub id, and for a name under MODEL_DIRS that a link leads out of there: whoever means the
    folder behind it gives its path.
    """
    if not model_name.startswith(_PATH_PREFIXES):
        for root in model_dirs:
            found = _directory_below(root, model_name) or _snapshot_below(root, model_name)
            if found is not None:
                return str(found)
    directory = Path(model_name).expanduser()
    if directory.is_dir():
        return str(directory.resolve())
    if directory.suffix == ".gguf" and directory.is_file():
        return str(directory.absolute())  # in the hub's cache, it is a link to a file of another name
    if model_name.startswith(_PATH_PREFIXES) or not _HUB_ID.fullmatch(model_name):
        raise ModelNotFound(
            f"model {model_name!r}: there is no such directory, neither by itself nor under MODEL_DIRS "
            f"({', '.join(map(str, model_dirs)) or 'none set'})",
            param="model_name",
        )
    return model_name


def _directory_below(root: Path, name: str) -> Path | None:
    """`root/name`, unless the name leads out of the root ("a/../../b"). Raises ModelNotFound."""
    base = root.expanduser().resolve()
    candidate = base / name
    if not candidate.is_dir() or ".." in Path(name).parts or candidate == base:
        return None
    for path in (candidate, *candidate.iterdir()):
        if not path.resolve().is_relative_to(base):
            raise ModelNotFound(
                f"model {name!r}: {path} is a link that leads out of {base}, to {path.resolve()}; "
                "give the path of the folder with the files, or add the folder that holds it to MODEL_DIRS",
                param="model_name",
            )
    return candidate


def _snapshot_below(root: Path, name: str) -> Path | None:
    """The main branch of `name`, where `root` has the layout of the hub's cache."""
    if not _HUB_ID.fullmatch(name):
        return None
    repository = root.expanduser().resolve() / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None
