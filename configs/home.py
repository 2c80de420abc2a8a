"""`~` in paths, for users without a home directory as well: containers run under whatever user id."""

from __future__ import annotations

import os
from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """Unlike Path's own, it leaves a `~` alone that nobody has: no such folder is there then."""
    return Path(os.path.expanduser(path))
