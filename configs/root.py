"""Where Berth's code and an operator's files are: one folder in a checkout, two for an installed package."""

from __future__ import annotations

import os
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent


def _home() -> Path:
    """BERTH_HOME, else the checkout; `~/.berth` for an installed package, whose folder updates replace."""
    if named := os.environ.get("BERTH_HOME"):
        return Path(named).expanduser().absolute()
    is_installed = CODE.name == "home" and (CODE.parent / "py.typed").is_file()
    return Path("~/.berth").expanduser() if is_installed else CODE


HOME = _home()
