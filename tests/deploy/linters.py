"""Where the linters are; a test whose linter isn't on the machine is skipped, and says so."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def linter(name: str) -> str:
    """The program's path: beside our interpreter or in PATH."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not on this machine")
    return found
