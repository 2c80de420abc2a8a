"""The embedded engine: an OpenAI-compatible inference server on PyTorch.

`python -m engine MODEL` on a command line; in a program `from engine import LLM, SamplingParams` without
HTTP, `from engine import run_server` with it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from engine.offline.llm import LLM as LLM
    from engine.offline.outputs import CompletionOutput as CompletionOutput
    from engine.offline.outputs import RequestOutput as RequestOutput
    from engine.offline.params import LoRARequest as LoRARequest
    from engine.offline.params import PoolingParams as PoolingParams
    from engine.offline.params import SamplingParams as SamplingParams
    from engine.offline.params import StructuredOutputsParams as StructuredOutputsParams


# Loaded when they are used, as all of the engine comes with them, and every part of it imports this package.
_OFFLINE = {
    "LLM": "llm",
    "SamplingParams": "params",
    "StructuredOutputsParams": "params",
    "PoolingParams": "params",
    "LoRARequest": "params",
    "RequestOutput": "outputs",
    "CompletionOutput": "outputs",
}


if not TYPE_CHECKING:  # for a type checker, a name that isn't there is an error

    def __getattr__(name: str) -> Any:
        if name not in _OFFLINE:
            raise AttributeError(f"module 'engine' has no attribute {name!r}")
        return getattr(importlib.import_module(f"engine.offline.{_OFFLINE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFLINE})


def run_server(model: str | os.PathLike[str] | None = None, **flags: Any) -> None:
    """Serve one model until SIGTERM or SIGINT: run_server("PATH", port=8000, max_model_len=4096).

    Without `model`, the environment variable NANOVLLM_MODEL_PATH names it. `flags` are those of
    `python -m engine` with underscores; see engine/launch/launcher.py.
    """
    importlib.import_module("engine.launch.launcher").run_server(model, **flags)
