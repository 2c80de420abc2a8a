"""What is in a folder of models, as far as links lead to places within it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence

Files = Mapping[str, os.stat_result | None]  # by name; None: a broken link, or one that isn't followed


def list_folder(path: str, root: str) -> tuple[Files, Sequence[str]]:
    """A folder's files (None: a link that is broken or leads out of `root`) and the names of its subfolders.

    Hidden entries, and names that no request could contain, are left out.
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
    """The entry's stat, unless it leads out of `root`."""
    try:
        if entry.is_symlink() and not os.path.realpath(entry.path).startswith(f"{root.rstrip('/')}/"):
            return None
        return entry.stat()
    except OSError:
        return None
