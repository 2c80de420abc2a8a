"""Pooling models asleep and awake again: their memory, and their results afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch

from engine.core.sleep import ALL_PARTS
from engine.errors import EngineAsleep
from engine.execution.offload import tensors_of
from engine.pooling.runner import PoolingModelRunner
from tests.engine.pooling.serving import pooling
from tests.engine.pooling.test_models import core_of, run
from tests.engine.pooling.tiny_poolers import make_pooler, write_modules

INPUTS = [[5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("name", ["bert", "bert-three", "qwen3", "qwen3-cross"])
def test_memory_is_freed_and_restored(name: str, level: int, tmp_path: Path) -> None:
    directory = make_pooler(name, tmp_path)
    if name == "qwen3":
        write_modules(directory, "lasttoken")
    core = core_of(directory)
    runner = core.runner
    assert isinstance(runner, PoolingModelRunner)
    before, awake = run(core, INPUTS), runner.memory
    assert awake.weights > 0
    assert (awake.kv_cache > 0) == name.startswith("qwen3")
    cache = runner._residency.cache
    weights = _watch([tensor for _, _, tensor in tensors_of(runner._residency.model.modules())])
    cached = _watch([] if cache is None else cache.tensors())
    del cache
    runner.sleep(level)
    assert not any(is_alive() for is_alive in cached)
    assert any(is_alive() for is_alive in weights) == (level == 1)
    assert (runner.memory.weights, runner.memory.kv_cache) == (awake.weights if level == 1 else 0, 0)
    with pytest.raises(EngineAsleep):
        run(core, INPUTS)
    runner.wake_up(ALL_PARTS)
    assert runner.memory == awake
    for vector, expected in zip(run(core, INPUTS), before, strict=True):
        assert torch.equal(vector, expected)


def _watch(tensors: list[torch.Tensor]) -> list[Callable[[], bool]]:
    return [partial(_is_alive, weakref.ref(tensor)) for tensor in tensors]


def _is_alive(reference: weakref.ref[torch.Tensor]) -> bool:
    return reference() is not None


@pytest.mark.parametrize("level", [1, 2])
def test_an_embedding_server_sleeps(minilm: Path, level: int) -> None:
    with (
        pooling(minilm, served_model_names=("minilm",), enable_sleep_mode=True) as server,
        server.http() as client,
    ):
        before = _embed(client)
        assert before.status_code == 200
        assert client.post(f"/sleep?level={level}").json() == {"status": "sleeping", "level": level}
        assert client.get("/is_sleeping").json() == {"is_sleeping": True}
        assert client.get("/health").status_code == 200
        assert (client.get("/memory").json()["weights"] == 0) == (level == 2)
        refused = _embed(client)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_asleep")
        assert client.post("/wake_up?tags=weights").json() == {"status": "sleeping", "tags": ["weights"]}
        assert client.post("/wake_up").json() == {"status": "awake", "tags": None}
        assert _embed(client).json()["data"] == before.json()["data"]


def _embed(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/embeddings", json={"input": "what sleeps", "model": "minilm"})
