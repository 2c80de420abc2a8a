"""Berth looks for models where engines download them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache, with_absolute_cache_paths

_ASK_THE_HUB = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
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
def test_a_child_and_berth_find_the_same_cache(given: dict[str, str], tmp_path: Path) -> None:
    """As found by the hub's own library, in a child in another folder."""
    base = {name: value for name, value in os.environ.items() if name not in _NAMES}
    environ = child_environment(base, given)
    found = subprocess.run(
        [sys.executable, "-c", _ASK_THE_HUB],
        env=environ,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(found.stdout.strip()) == hub_cache({**base, **given}) == hub_cache(environ)


def test_other_variables_of_the_environment_stay() -> None:
    assert with_absolute_cache_paths({"A": "", "HF_TOKEN": "", "HF_HOME": ""}) == {"A": "", "HF_TOKEN": ""}
