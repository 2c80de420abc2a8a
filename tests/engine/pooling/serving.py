"""A pooling server in a thread of the test's process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.pooling.engine import Core, PoolingEngine
from engine.pooling.plan import read_pooling_plan
from engine.text.tokenizer import load_tokenizer
from tests.engine.server.serving import Running, running


@contextmanager
def pooling(directory: Path, *, engine: Mapping[str, Any] | None = None, **options: Any) -> Iterator[Running]:
    """Serve a checkpoint; `engine` goes to EngineConfig, `options` to ServerConfig."""
    settings: dict[str, Any] = {"device": "cpu", "num_threads": 2, **(engine or {})}
    config = EngineConfig(model=directory, **settings)
    plan = read_pooling_plan(config)

    def build() -> Core:
        from engine.pooling.build import build_pooling_core

        return build_pooling_core(config, plan, lambda: load_tokenizer(directory))

    with running(directory, PoolingEngine(build, plan), **options) as server:
        yield server
