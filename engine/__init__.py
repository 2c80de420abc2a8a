"""The embedded engine: an OpenAI-compatible inference server on PyTorch.

`python -m engine MODEL` on a command line, `from engine import run_server` in a program.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.2.0"


def run_server(model: str | os.PathLike[str], **flags: Any) -> None:
    """Serve one model until SIGTERM or SIGINT: run_server("PATH", port=8000, max_model_len=4096).

    `flags` are those of `python -m engine` with underscores; see engine/launch/launcher.py.
    """
    # Imported late: the launcher imports all of the engine, and every part of it imports this package.
    importlib.import_module("engine.launch.launcher").run_server(model, **flags)
