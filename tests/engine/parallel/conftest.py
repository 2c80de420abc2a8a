"""A model that every test here divides."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.server.tokenizers_for_tests import byte_level_tokenizer, write_tokenizer_files


@pytest.fixture(scope="session")
def tiny_model(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint: random weights, a tokenizer and a chat template."""
    directory = tmp_path_factory.mktemp("divided") / "model"
    shutil.copytree(checkpoint("qwen3-tied"), directory)
    return write_tokenizer_files(directory, byte_level_tokenizer())
