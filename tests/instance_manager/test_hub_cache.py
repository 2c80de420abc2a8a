"""Models are searched in the cache that engines download to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache, with_absolute_cache_paths

_PRINT_CACHE = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
_NAMES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TRANSFORMERS_CACHE")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"XDG_CACHE_HOME": "/xdg"},
        {"XDG_CACHE_HOME": "/xdg", "HF_HOME": "~/hf"},
        {"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/former"},
        {"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/former", "HF_HUB_CACHE": "$HOME/hub"},
        {"HF_HUB_CACHE": "", "HF_HOME": "", "XDG_CACHE_HOME": ""},
        {"HF_HUB_CACHE": "relative/hub"},
        {"TRANSFORMERS_CACHE": "/unread", "PYTORCH_TRANSFORMERS_CACHE": "/unread"},
    ],
)
def test_a_child_and_berth_resolve_the_same_cache(given: dict[str, str], tmp_path: Path) -> None:
    """Compares with huggingface_hub itself, in a child with another working directory."""
    base = {name: value for name, value in os.environ.items() if name not in _NAMES}
    environ = child_environment(base, given)
    printed = subprocess.run(
        [sys.executable, "-c", _PRINT_CACHE],
        env=environ,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(printed.stdout.strip()) == hub_cache({**base, **given}) == hub_cache(environ)


def test_other_variables_stay_in_the_environment() -> None:
    assert with_absolute_cache_paths({"A": "", "HF_TOKEN": "", "HF_HOME": ""}) == {"A": "", "HF_TOKEN": ""}
