"""One model for all tests, and a server with its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import LLM
from tests.engine.server.conftest import demo_server

__all__ = ["demo_server"]

DEMO = Path(__file__).resolve().parents[3] / "models" / "berth-demo"


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    with LLM(DEMO, dtype="float32", device="cpu", max_num_seqs=8, num_threads=1) as llm:
        yield llm
