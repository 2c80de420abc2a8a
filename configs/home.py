"""`~` in paths, also for users without a home directory: containers run under arbitrary user ids."""

from __future__ import annotations

import os
from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """Unlike Path.expanduser, leaves `~` as it is for a user without a home directory."""
    return Path(os.path.expanduser(path))
