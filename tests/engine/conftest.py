"""Checkpoints made once per run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny checkpoint by its recipe's name (tiny_models.RECIPES)."""
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def make(name: str) -> Path:
        from tests.engine.tiny_models import make_checkpoint  # imports transformers, so only if needed

        return make_checkpoint(name, root)

    return make
