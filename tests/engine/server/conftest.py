"""Servers shared by tests, which leave nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.server.serving import Running, fake_core, running, write_fake_model
from tests.engine.server.tokenizers_for_tests import byte_level_tokenizer, write_tokenizer_files


@pytest.fixture(scope="session")
def fake_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory without weights."""
    return write_fake_model(tmp_path_factory.mktemp("fake-model"))


@pytest.fixture(scope="module")
def fake_server(fake_model: Path) -> Iterator[Running]:
    """The real server around a fake runner."""
    with running(fake_model, fake_core(fake_model)) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_model(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint: random weights, a tokenizer and a chat template."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(checkpoint("qwen3-tied"), directory)
    return write_tokenizer_files(directory, byte_level_tokenizer())


@pytest.fixture(scope="module", params=["fake", "checkpoint"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """The server with a fake runner, and with a real model."""
    if request.param == "fake":
        yield request.getfixturevalue("fake_server")
        return
    from engine.config import EngineConfig
    from engine.execution.build import build_core

    directory = request.getfixturevalue("tiny_model")
    config = EngineConfig(
        model=directory, dtype="float32", device="cpu", max_model_len=200, max_num_seqs=8, num_threads=1
    )
    with running(directory, lambda: build_core(config, eos_token_ids=[0])) as real:
        yield real


@pytest.fixture(scope="session")
def demo_server() -> Iterator[Running]:
    """A server of the model that ships with Berth, which supports tools and reasoning."""
    from engine.config import EngineConfig
    from engine.execution.build import build_core
    from engine.text.tokenizer import load_tokenizer

    directory = Path(__file__).resolve().parents[3] / "models" / "berth-demo"
    config = EngineConfig(model=directory, dtype="float32", device="cpu", max_num_seqs=8, num_threads=1)
    ends = load_tokenizer(directory).end_token_ids
    with running(directory, lambda: build_core(config, eos_token_ids=ends)) as server:
        yield server
