"""The Hugging Face Hub cache directory, by the engines' environment: the only place that decides it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
_VARIABLES = (*_CACHES, "HF_HOME", "XDG_CACHE_HOME")


def hub_cache(environ: Mapping[str, str]) -> Path:
    """As huggingface_hub resolves it; transformers, vLLM and `berth pull` all use its result.

    TRANSFORMERS_CACHE, which old versions of transformers read, has no effect.
    """
    for name in _CACHES:
        if environ.get(name):
            return _absolute(environ[name])
    if environ.get("HF_HOME"):
        return _absolute(environ["HF_HOME"]) / "hub"
    return _absolute(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def is_hub_offline(environ: Mapping[str, str]) -> bool:
    """Whether nothing may be downloaded, as huggingface_hub reads it."""
    value = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def with_absolute_cache_paths(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child that runs in another directory: cache paths absolute, empty ones removed.

    huggingface_hub would take an empty path for its current directory.
    """
    child_environ = dict(environ)
    for name in _VARIABLES:
        if value := child_environ.pop(name, ""):
            child_environ[name] = str(_absolute(value))
    return child_environ


def _absolute(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path))).absolute()
