"""Deletes one quantisation of GGUF files from a repository in the hub's cache, and nothing that others use.

Runs in the child process that talks to the hub, never in Berth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from instance_manager.gguf.names import is_projector, sets_of, with_tag
from instance_manager.hub.errors import no_quantisation
from instance_manager.hub.files import gguf_models


def remove_quantisation(folder: Path, model: str, tag: str) -> int:
    """Delete it from all snapshots of a repository. Returns the bytes freed. Raises HubError.

    `folder`: the repository's.
    """
    snapshots = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    found = [file for snapshot in snapshots for file in _files_of(snapshot, model, tag)]
    if not found:
        existing = {one.quantisation for path in snapshots for one in gguf_models(model, _names(path))}
        raise no_quantisation(model, tag, sorted(filter(None, existing)))
    freed_bytes = _delete(folder, snapshots, found)
    projectors = [file for snapshot in snapshots for file in _unused_projectors(snapshot)]
    freed_bytes += _delete(folder, snapshots, projectors)
    for snapshot in snapshots:
        _remove_empty_folders(snapshot)
    return freed_bytes


def _names(snapshot: Path) -> list[str]:
    return [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf")]


def _files_of(snapshot: Path, model: str, tag: str) -> Iterator[Path]:
    sets = gguf_models(model, _names(snapshot))
    chosen = with_tag(sets, tag)
    if chosen is not None:
        same = [one for one in sets if one.quantisation == chosen.quantisation]
        yield from (snapshot / name for one in same for name in one.files)


def _unused_projectors(snapshot: Path) -> Iterator[Path]:
    """Those in a snapshot that has no model any more."""
    names = _names(snapshot)
    if not sets_of(names):
        yield from (snapshot / name for name in names if is_projector(name))


def _delete(folder: Path, snapshots: Iterable[Path], files: Iterable[Path]) -> int:
    """Delete files of snapshots, and their blobs, unless another file of a snapshot is the same."""
    freed_bytes = 0
    blobs = set()
    for file in files:
        blob = file.resolve()
        if blob == file.absolute():  # where links can't be made, a snapshot holds the file itself
            freed_bytes += file.stat().st_size
        else:
            blobs.add(blob)
        file.unlink()
    used = {path.resolve() for snapshot in snapshots for path in snapshot.rglob("*") if path.is_symlink()}
    for blob in blobs - used:
        if blob.is_relative_to((folder / "blobs").resolve()) and blob.is_file():
            freed_bytes += blob.stat().st_size
            blob.unlink()
    return freed_bytes


def _remove_empty_folders(snapshot: Path) -> None:
    """The snapshot itself, too; what isn't empty stays."""
    for path in sorted((*snapshot.rglob("*"), snapshot), key=lambda one: -len(one.parts)):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
