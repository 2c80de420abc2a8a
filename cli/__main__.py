"""`python -m cli`, which the script `berth` calls."""

from __future__ import annotations

import sys


def main() -> int:
    """See `cli.app.main`."""
    try:
        from cli.app import main as run

        return run()
    except KeyboardInterrupt:  # while modules are loaded
        return 130


if __name__ == "__main__":
    sys.exit(main())
