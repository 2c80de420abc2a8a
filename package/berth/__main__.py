"""`berth`, and `python -m berth`: the command line."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """The exit status."""
    sys.path.insert(0, str(Path(__file__).parent / "home"))
    from cli.__main__ import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
