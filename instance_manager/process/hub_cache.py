"""Where the hub's cache lies, by the environment that engines get: the one place that decides it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
_VARIABLES = (*_CACHES, "HF_HOME", "XDG_CACHE_HOME")


def hub_cache(environ: Mapping[str, str]) -> Path:
    """As huggingface_hub decides it; transformers, vLLM and `berth pull` leave it to that.

    TRANSFORMERS_CACHE, which older versions of transformers read, decides nothing any more.
    """
    for name in _CACHES:
        if environ.get(name):
            return _located(environ[name])
    if environ.get("HF_HOME"):
        return _located(environ["HF_HOME"]) / "hub"
    return _located(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def with_absolute_cache_paths(environ: Mapping[str, str]) -> dict[str, str]:
    """The same for a child in another folder than Berth: its paths absolute, and what is empty left out.

    huggingface_hub would take an empty name for the folder that it happens to run in.
    """
    settled = dict(environ)
    for name in _VARIABLES:
        if value := settled.pop(name, ""):
            settled[name] = str(_located(value))
    return settled


def _located(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path))).absolute()
