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


@pytest.fixture
def triton_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU computes with the GPU's kernels, by Triton's interpreter."""
    pytest.importorskip("triton")
    for module in ("operators", "attention.backend"):
        monkeypatch.setattr(f"engine.models.{module}.uses_triton", lambda device_type: True)
