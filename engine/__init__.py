"""The embedded engine: an OpenAI-compatible inference server on PyTorch.

`python -m engine MODEL` on a command line, `run_server("MODEL", port=8000)` in a program.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["__version__", "run_server"]

__version__ = "0.1.0"


def run_server(model: str | os.PathLike[str], **flags: Any) -> None:
    """Serve one model until SIGTERM or SIGINT; engine/launch.py says more."""
    from engine.launch import run_server as run  # what is only asked for its version imports no server

    run(model, **flags)
