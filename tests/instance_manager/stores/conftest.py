"""The three stores as one fixture; one redis-server serves all tests that don't break it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instance_manager.state.stores import InstanceRecord, StateStore, open_store
from instance_manager.types import InstanceSpec, InstanceState
from tests.instance_manager.stores.redis_process import REDIS_SERVER, RedisProcess

needs_redis = pytest.mark.skipif(REDIS_SERVER is None, reason="redis-server is not installed")
STORES = ["memory", "sqlite", pytest.param("redis", marks=needs_redis)]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=STORES)
def state_url(request: pytest.FixtureRequest) -> str:
    if request.param == "redis":
        server: RedisProcess = request.getfixturevalue("redis_server")
        server.flush()
        return server.url
    return {"memory": "memory://", "sqlite": "sqlite:///berth.db"}[request.param]


@pytest.fixture
async def store(state_url: str, tmp_path: Path) -> AsyncIterator[StateStore]:
    async with await open_store(state_url, tmp_path, history=20) as opened:
        yield opened


def a_record(instance_id: str = "one", **changes: Any) -> InstanceRecord:
    """A record with something in every kind of field."""
    record = InstanceRecord(
        instance_id=instance_id,
        state=InstanceState.RUNNING,
        owner="berth-a",
        spec=InstanceSpec("org/model", "vllm", params={"dtype": "auto", "seed": None}, devices=("0", "1")),
        model_name="org/model",
        params={"stop": ["a", "ü"], "max_model_len": 1 << 40},
        command=("vllm", "serve"),
        port=9000,
        pid=4711,
        pid_start_ticks=1 << 45,
        boot_id="b",
        token="token-secret",
        api_key="key-secret",
        generation=3,
        failure={"class": "crashed", "log_tail": []},
        created_at=1_790_000_000.123456,
    )
    return replace(record, **changes)
