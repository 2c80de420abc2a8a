"""Berth is killed, and its successor lets engines expire by the time of their last use. Real processes.

The successor's wall clock is shifted, as if Berth had been away for hours, or as if the clock had been set.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.berth_process import ROOT
from tests.instance_manager.stores.redis_process import REDIS_SERVER, RedisProcess
from tests.successive_berths import Berths, are_running, create, end, eventually, kill, records

SHIFTED = f"""
import os, sys, time

sys.path.insert(0, {str(ROOT)!r})

true_time, shift_s = time.time, float(os.environ["SHIFT_S"])
time.time = lambda: true_time() + shift_s

from app import main

sys.exit(main([]))
"""
HOUR_S = 3600.0
PRECISION_S = 60.0


@pytest.fixture
def berths(tmp_path: Path) -> Iterator[Berths]:
    (tmp_path / "app.py").write_text(SHIFTED)
    berths = Berths(tmp_path, root=tmp_path)
    try:
        yield berths
    finally:
        berths.close()


@pytest.fixture(params=["sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings of a store."""
    if request.param == "sqlite":
        yield {}
        return
    if REDIS_SERVER is None:
        pytest.skip("redis-server is not installed")
    redis = RedisProcess(tmp_path)
    redis.start()
    try:
        yield {"STATE_URL": redis.url}
    finally:
        redis.kill()


def remaining_s(client: httpx.Client, name: str, shift_s: float) -> float:
    """Until the instance expires."""
    expires_at: float = records(client)[name]["expires_at"]
    return expires_at - (time.time() + shift_s)


def test_an_adopted_engine_has_been_idle_since_its_last_use(berths: Berths, state: dict[str, str]) -> None:
    first = berths.begin(SHIFT_S="0", **state)
    with first.client() as client:
        for name, timeout in (("brief", HOUR_S), ("long", 3 * HOUR_S), ("never", 0.0)):
            create(client, name)
            assert client.patch(f"/instances/{name}", json={"timeout": timeout}).status_code == 200
        assert client.get("/proxy/long/headers").status_code == 200
        used_at, pids = time.time(), {name: one["pid"] for name, one in records(client).items()}
        kill(first)

    away_s = 2 * HOUR_S
    second = berths.begin(SHIFT_S=str(away_s), ON_SHUTDOWN="detach", **state)
    with second.client() as client:
        eventually(lambda: records(client)["brief"]["status"] == "stopped", second.output)
        eventually(lambda: are_running(client, "long", "never"), second.output)
        found = records(client)
        assert "idle for" in found["brief"]["status_reason"]
        assert [found[name]["pid"] for name in ("long", "never")] == [pids["long"], pids["never"]]
        assert 0 <= found["long"]["last_active"] - used_at <= PRECISION_S + 5
        left_s = remaining_s(client, "long", away_s)
        assert HOUR_S - 30 < left_s <= HOUR_S + PRECISION_S, "never early, and at most a minute late"

        assert client.get("/proxy/never/headers").status_code == 200
        used_at = records(client)["never"]["last_active"]
        end(second)  # in order, and at once: this use is stored all the same

    third = berths.begin(SHIFT_S=str(away_s + 300), **state)
    with third.client() as client:
        eventually(lambda: are_running(client, "long", "never"), third.output)
        found = records(client)
        assert found["never"]["last_active"] == pytest.approx(used_at + PRECISION_S, abs=0.5)
        assert found["never"]["pid"] == pids["never"]
    end(third)
