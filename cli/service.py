"""Replaces this process with app.py, the service, of which the command line knows only the flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cli.errors import wrong_use

_ROOT = Path(__file__).resolve().parent.parent


def become_service(flags: Sequence[str]) -> NoReturn:
    """Runs in Berth's own folder, and thus reads the .env there; paths in flags are relative to the caller's.

    Raises CliError if there is no such folder.
    """
    main = _ROOT / "app.py"
    if not main.is_file():
        raise wrong_use(f"there is no {main}", "run it from a checkout of Berth")
    argv = [sys.executable, str(main), f"--relative-to={os.getcwd()}", *flags]
    os.chdir(_ROOT)
    os.execv(sys.executable, argv)  # noqa: S606 - deliberately without a shell
